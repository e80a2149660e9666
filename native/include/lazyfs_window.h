/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of restart points. */
#ifndef LAZYFS_WINDOW_H
#define LAZYFS_WINDOW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * lfs_window_keep() copies those bytes of 'window' to 'kept' that some place
 * names, and zeros for the others; both have 'size' bytes.  Place i is low[i]
 * and high[i], its halves, for i below 'count'; one beyond the window names
 * nothing.
 */
void lfs_window_keep(uint8_t *kept, const uint8_t *window, size_t size,
		     const uint8_t *low, const uint8_t *high, size_t count);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_WINDOW_H */
