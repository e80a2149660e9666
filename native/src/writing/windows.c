/* SPDX-License-Identifier: Apache-2.0 */
/* What the data behind a window look back at. */
#include <string.h>

#include "lazyfs_window.h"

void lfs_window_keep(uint8_t *kept, const uint8_t *window, size_t size,
		     const uint8_t *low, const uint8_t *high, size_t count)
{
	size_t i, place;

	memset(kept, 0, size);
	for (i = 0; i < count; i++) {
		place = low[i] | (size_t)high[i] << 8;
		if (place < size)
			kept[place] = window[place];
	}
}
