/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

#include <string.h>

#include "support.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t names[] = "name\0size\0type";

	exercise_toc(data, size);
	lfs_toc_has_plain_keys(data, size, names, sizeof(names) - 1);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	size_t size = strlen(TOC_SAMPLE);

	CHECK(max >= size);
	memcpy(data, TOC_SAMPLE, size);
	return size;
}
