/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever is cut off, nothing behind the end is read. */
#include <string.h>

#include "support.h"

static void check_index(const struct made *made)
{
	struct lfs_index index, cut;
	uint8_t *copy;
	size_t size;

	CHECK(lfs_index_open(&index, made->index, INDEX_SIZE) == LFS_OK);
	for (size = 0; size < INDEX_SIZE; size += size < 4500 ? 1 : 61) {
		copy = guarded_copy(made->index, size);
		CHECK(lfs_index_open(&cut, copy, size) == LFS_CORRUPT);
		/* As if the superblock had promised just this size */
		if (size >= 1408) {
			cut = index;
			cut.bytes = copy;
			cut.size = size;
			exercise_index(&cut);
		}
		guarded_free(copy, size);
	}
	copy = guarded_copy(made->index, INDEX_SIZE);
	CHECK(lfs_index_open(&cut, copy, INDEX_SIZE) == LFS_OK);
	exercise_index(&cut);
	guarded_free(copy, INDEX_SIZE);
}

static void check_tables(const struct made *made)
{
	struct lfs_provenance provenance;
	struct lfs_table table;
	uint8_t *copy;
	size_t size;

	for (size = 0; size <= TABLE_SIZE(3); size++) {
		copy = guarded_copy(made->tables[0], size);
		CHECK((lfs_table_open(&table, copy, size) == LFS_OK) ==
		      (size == TABLE_SIZE(3)));
		if (size == TABLE_SIZE(3))
			exercise_table(&table);
		guarded_free(copy, size);
	}
	for (size = 0; size <= PROVENANCE_SIZE; size++) {
		copy = guarded_copy(made->provenance, size);
		CHECK((lfs_provenance_open(&provenance, copy, size) ==
		       LFS_OK) == (size == PROVENANCE_SIZE));
		if (size == PROVENANCE_SIZE)
			exercise_provenance(&provenance);
		guarded_free(copy, size);
	}
}

int main(void)
{
	static struct made made;

	make_image(&made);
	check_index(&made);
	check_tables(&made);
	return 0;
}
