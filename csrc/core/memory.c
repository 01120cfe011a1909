/* memory.c - where the scratch memory of a call comes from. */
#define _DEFAULT_SOURCE /* madvise */
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core.h"

void *smm_carve(smm_arena *arena, size_t count, size_t size)
{
    if (smm_too_big(count, size)) {
        arena->overflow = 1;
        return NULL;
    }
    const size_t bytes = (count * size + SMM_ALIGN - 1) / SMM_ALIGN * SMM_ALIGN;
    void *piece = arena->base ? arena->base + arena->used : NULL;
    arena->used += bytes;
    return piece;
}

/* What stands before the arena: the size of the whole block. */
typedef struct {
    size_t bytes;
} head;

/* A block that nobody uses, or NULL. Fresh pages come from the system one by one, and in a process that does little else, malloc gives
 * them back after each call: that took up to two fifths of a call's time. */
static head *kept;

static head *exchange_kept(head *block)
{
#ifdef __GNUC__
    return __atomic_exchange_n(&kept, block, __ATOMIC_ACQ_REL);
#else
    return block;
#endif
}

void *smm_reserve(size_t bytes, void **block)
{
    const size_t huge = (size_t)1 << 21, align = bytes < huge / 4 ? SMM_ALIGN : huge;
    const size_t used = (bytes + align - 1) / align * align, whole = sizeof(head) + align + used;
    head *h = exchange_kept(NULL);
    if (h && h->bytes < whole) {
        free(h);
        h = NULL;
    }
    if (!h && (h = malloc(whole))) h->bytes = whole;
    *block = h;
    if (!h) return NULL;
    const uintptr_t at = ((uintptr_t)(h + 1) + align - 1) / align * align;
#ifdef MADV_HUGEPAGE
    if (align == huge) madvise((void *)at, used, MADV_HUGEPAGE); /* small pages can take as long as the work in them */
#endif
    return (void *)at;
}

void smm_release(void *block)
{
    head *h = block;
    if (h && h->bytes <= SMM_KEPT_MOST) h = exchange_kept(h);
    free(h);
}
