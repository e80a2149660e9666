/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

#include <string.h>

#include "support.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct lfs_provenance provenance;
	struct lfs_table table;

	if (lfs_table_open(&table, data, size) == LFS_OK)
		exercise_table(&table);
	if (lfs_provenance_open(&provenance, data, size) == LFS_OK)
		exercise_provenance(&provenance);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	static struct made made;

	make_image(&made);
	CHECK(max >= TABLE_SIZE(3));
	memcpy(data, made.tables[0], TABLE_SIZE(3));
	return TABLE_SIZE(3);
}
