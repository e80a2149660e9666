/* SPDX-License-Identifier: Apache-2.0 */
/* Of a window those bytes are kept that some place names, and nothing else. */
#include <string.h>

#include "support.h"

static void check_kept(void)
{
	static const uint8_t low[] = {0, 3, 3, 44, 255}, high[] = {0, 0, 0, 1, 255};
	uint8_t window[301], kept[301];
	unsigned i;

	for (i = 0; i < sizeof(window); i++)
		window[i] = (uint8_t)(i % 250 + 1);
	memset(kept, 0xee, sizeof(kept));
	lfs_window_keep(kept, window, sizeof(window), low, high, sizeof(low));
	for (i = 0; i < sizeof(window); i++)
		CHECK(kept[i] == (i == 0 || i == 3 || i == 300 ? window[i] : 0));
}

static void check_nothing(void)
{
	static const uint8_t none[1], window[2] = {1, 2};
	uint8_t kept[2] = {7, 7};

	lfs_window_keep(kept, window, 2, none, none, 0);
	CHECK(kept[0] == 0 && kept[1] == 0);
	/* Places beyond the window: of bytes that nothing was copied for. */
	lfs_window_keep(kept, window, 0, none, none, 1);
	lfs_window_keep(kept, window, 1, none, none, 1);
	CHECK(kept[0] == 1 && kept[1] == 0);
}

int main(void)
{
	check_kept();
	check_nothing();
	return 0;
}
