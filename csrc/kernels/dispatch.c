/* dispatch.c - which set of kernels runs: the best for this machine, or one chosen by name. */
#include <stdlib.h>
#include <string.h>

#include "sets.h"

typedef struct {
    const char *name;
    const smm_kernels_f32 *f32;
    const smm_kernels_f64 *f64;
    int (*supported)(void);
} kernel_set;

static int always(void) { return 1; }

#ifdef SMM_HAVE_AVX2
/* These builtins also ask whether the operating system saves the wide registers. */
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}
#endif

/* Weakest first. */
static const kernel_set sets[] = {
    {"scalar", &smm_table_scalar_f32, &smm_table_scalar_f64, always},
#ifdef SMM_HAVE_NEON
    {"neon", &smm_table_neon_f32, &smm_table_neon_f64, always},
#endif
#ifdef SMM_HAVE_AVX2
    {"avx2", &smm_table_avx2_f32, &smm_table_avx2_f64, has_avx2},
    {"avx512", &smm_table_avx512_f32, &smm_table_avx512_f64, has_avx512},
#endif
};
#define SETS (sizeof sets / sizeof *sets)

static const kernel_set *chosen;

static const kernel_set *find(const char *name) {
    const kernel_set *found = NULL;
    const int any = !name || !*name;
    for (size_t i = 0; i < SETS; i++)
        if ((any || !strcmp(name, sets[i].name)) && sets[i].supported()) found = &sets[i];
    return found;
}

static const kernel_set *current(void) {
    if (!chosen) {
        const kernel_set *asked = find(getenv("SMM_SIMD"));
        chosen = asked ? asked : find(NULL);
    }
    return chosen;
}

const smm_kernels_f32 *smm_kernels_f32_get(void) {
#ifdef SMM_HAVE_AVX512
    if (current()->f32 == &smm_table_avx512_f32 && __builtin_cpu_supports("avx512bf16"))
        return &smm_table_avx512_bf16_f32;
#endif
    return current()->f32;
}
const smm_kernels_f64 *smm_kernels_f64_get(void) { return current()->f64; }
const char *smm_simd_chosen(void) { return current()->name; }

const char *smm_simd_built(size_t i, int *supported) {
    if (i >= SETS) return NULL;
    if (supported) *supported = sets[i].supported();
    return sets[i].name;
}

int smm_simd_select(const char *name) {
    const kernel_set *asked = find(name);
    if (!asked) return -1;
    chosen = asked;
    return 0;
}
