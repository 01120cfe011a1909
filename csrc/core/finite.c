/* finite.c - the search for infinities and NaN, which the calls themselves do not make. */
#include <string.h>

#include "core.h"
#include "parallel.h"

/* An exponent of ones, to which one more carries into the sign: for a whole stretch at a time and
 * without a branch, so that the compiler uses vectors; the stretch tells where to look. */
#define FIRST_NONFINITE(bits, one)                                                     \
    static size_t first_nonfinite_##bits(const char *at, size_t n) {                   \
        const uint##bits##_t sign = (uint##bits##_t)((uint##bits##_t)1 << (bits - 1)); \
        for (size_t i = 0, m; i < n; i += m) {                                         \
            uint##bits##_t found = 0, x;                                               \
            m = smm_min(n - i, 1024);                                                  \
            for (size_t j = i; j < i + m; j++) {                                       \
                memcpy(&x, at + j * sizeof x, sizeof x);                               \
                found |= (uint##bits##_t)((x & (uint##bits##_t) ~sign) + (one));       \
            }                                                                          \
            for (size_t j = i; found & sign && j < i + m; j++) {                       \
                memcpy(&x, at + j * sizeof x, sizeof x);                               \
                if (((x & (uint##bits##_t) ~sign) + (one)) & sign) return j;           \
            }                                                                          \
        }                                                                              \
        return n;                                                                      \
    }
FIRST_NONFINITE(16, 0x80)
FIRST_NONFINITE(32, UINT32_C(0x800000))
FIRST_NONFINITE(64, UINT64_C(0x10000000000000))

/* Among the i-th of `parts` parts; n if there is none. */
static size_t first_in_part(int bits, const char *at, size_t n, size_t i, size_t parts) {
    const size_t begin = smm_part(n, i, parts), count = smm_part(n, i + 1, parts) - begin;
    at += begin * (size_t)bits / 8;
    const size_t found = bits == 16   ? first_nonfinite_16(at, count)
                         : bits == 32 ? first_nonfinite_32(at, count)
                                      : first_nonfinite_64(at, count);
    return found < count ? begin + found : n;
}

size_t smm_first_nonfinite(int bits, const void *numbers, size_t n, int threads) {
    if (bits != 16 && bits != 32 && bits != 64) return (size_t)-1;
    enum {
        MOST = 16,
        LEAST = 1 << 19
    }; /* more threads read memory no faster; for fewer bytes none need be woken */
    const size_t parts =
        threads < 2 || n < LEAST / ((size_t)bits / 8) ? 1 : smm_min((size_t)threads, MOST);
    size_t found[MOST], first = n;
    SMM_PARALLEL(parts, parts, i, thread, found[i] = first_in_part(bits, numbers, n, i, parts));
    for (size_t i = 0; i < parts && first == n; i++) first = found[i];
    return first;
}
