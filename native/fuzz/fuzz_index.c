/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

#include <string.h>

#include "support.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct lfs_index index;

	if (lfs_index_open(&index, data, size) == LFS_OK)
		exercise_index(&index);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	static struct made made;

	make_image(&made);
	CHECK(max >= INDEX_SIZE);
	memcpy(data, made.index, INDEX_SIZE);
	return INDEX_SIZE;
}
