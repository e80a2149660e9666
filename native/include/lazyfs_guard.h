/* SPDX-License-Identifier: Apache-2.0 */
/* Maps of files that may become shorter. */
#ifndef LAZYFS_GUARD_H
#define LAZYFS_GUARD_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * lfs_guard() sees to it that pages of the map at 'start' which its file cannot
 * give any more (it was cut, or the disk fails) become zeros for this process,
 * instead of its end by SIGBUS.  Returns 0 or an errno.  lfs_unguard() is for
 * before the map goes away.  Both may be called by any thread.
 */
int lfs_guard(const void *start, size_t size);
void lfs_unguard(const void *start);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_GUARD_H */
