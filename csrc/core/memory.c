/* memory.c - where the scratch memory of a call comes from, and memory for what it saves. */
#define _DEFAULT_SOURCE /* madvise */
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core.h"

void *smm_carve(smm_arena *arena, size_t count, size_t size) {
    if (smm_too_big(count, size)) {
        arena->overflow = 1;
        return NULL;
    }
    const size_t bytes = (count * size + SMM_ALIGN - 1) / SMM_ALIGN * SMM_ALIGN;
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += bytes;
    return piece;
}

/* What stands before the memory that is handed out. */
typedef struct {
    void *base;   /* what malloc gave */
    size_t bytes; /* of it */
} head;

/* Cached blocks, which nobody uses, or NULL. In a process that does little else, malloc would give
 * them back to the system after each call: fresh pages took up to two fifths of a call's time. As
 * many as a training step has in use together: scratch memory, the saved state, and the gradients
 * of inputs and parameters. */
static head *cached[SMM_CACHED];

static head *exchange(head **place, head *h) {
    return __atomic_exchange_n(place, h, __ATOMIC_ACQ_REL);
}

static void drop(head *h) {
    if (h) free(h->base);
}

static size_t bytes_of(const head *h) { return h ? h->bytes : 0; }

/* The smallest cached block of `least` to `most` bytes, or NULL. */
static head *take(size_t least, size_t most) {
    head *best = NULL;
    for (size_t i = 0; i < SMM_CACHED; i++) {
        head *h = exchange(&cached[i], NULL);
        const int fits = bytes_of(h) >= least && bytes_of(h) <= most;
        if (fits && (!best || h->bytes < best->bytes)) {
            head *other = best;
            best = h, h = other;
        }
        if (h) drop(exchange(&cached[i], h)); /* another thread may have left one there */
    }
    return best;
}

/* The head is in the first of a block's large pages: one before it would be another page in use. */
void *smm_alloc(size_t bytes) {
    const size_t huge = (size_t)1 << 21, align = bytes < huge / 4 ? SMM_ALIGN : huge;
    if (smm_too_big(bytes, 1)) return NULL;
    const size_t used = (SMM_ALIGN + bytes + align - 1) / align * align, whole = align + used;
    /* what is small would hold a large block for as long as it lives */
    head *h = take(whole, smm_max(whole, 2 * bytes));
    const head block = {h ? h->base : malloc(whole), h ? h->bytes : whole};
    if (!block.base) return NULL;
    const uintptr_t start = ((uintptr_t)block.base + align - 1) / align * align;
    head *const at = (head *)(start + SMM_ALIGN);
#ifdef MADV_HUGEPAGE
    if (align == huge)
        madvise((void *)start, used,
                MADV_HUGEPAGE); /* small pages can take as long as the work in them */
#endif
    at[-1] = block;
    return at;
}

void smm_free(void *memory) {
    head *h = memory ? (head *)memory - 1 : NULL;
    for (size_t i = 0; bytes_of(h) <= SMM_CACHED_MOST && i < SMM_CACHED; i++) {
        head *other = exchange(&cached[i], NULL);
        const int larger = bytes_of(other) > bytes_of(h);
        drop(exchange(&cached[i], larger ? other : h));
        if (!larger) h = other;
    }
    drop(h);
}

size_t smm_trim(void) {
    size_t bytes = 0;
    for (size_t i = 0; i < SMM_CACHED; i++) {
        head *h = exchange(&cached[i], NULL);
        bytes += bytes_of(h);
        drop(h);
    }
    return bytes;
}
