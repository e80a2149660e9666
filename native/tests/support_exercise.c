/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "support.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

uint8_t *guarded_copy(const uint8_t *bytes, size_t size)
{
	size_t room = (size + 4095) & ~(size_t)4095;
	uint8_t *map = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(map != MAP_FAILED);
	CHECK(mprotect(map + room, 4096, PROT_NONE) == 0);
	if (size)
		memcpy(map + room - size, bytes, size);
	return map + room - size;
}

void guarded_free(uint8_t *copy, size_t size)
{
	size_t room = (size + 4095) & ~(size_t)4095;

	munmap(copy + size - room, room + 4096);
}

static void exercise_inode(const struct lfs_index *index,
			   const struct lfs_inode *inode)
{
	static const char *const names[] = {"", "n0300", "zzz", "."};
	const uint8_t *target;
	struct lfs_entries entries;
	struct lfs_extent extent;
	struct lfs_xattrs xattrs;
	struct lfs_entry entry;
	struct lfs_xattr xattr;
	size_t i, size, steps = 0;
	volatile uint8_t seen = 0;
	uint64_t nid;

	if (lfs_index_readlink(index, inode, &target, &size) == LFS_OK)
		for (i = 0; i < size; i++)
			seen ^= target[i];
	if (lfs_index_extent(index, inode, &extent) == LFS_OK && extent.device)
		CHECK(extent.offset + extent.size <=
		      lfs_index_device_size(index, extent.device));
	for (i = 0; i < 4; i++)
		lfs_index_lookup(index, inode, (const uint8_t *)names[i],
				 strlen(names[i]), &nid);
	if (lfs_entries_open(&entries, index, inode, 0) == LFS_OK) {
		while (lfs_entries_next(&entries, &entry) == LFS_OK) {
			for (i = 0; i < entry.name_size; i++)
				seen ^= entry.name[i];
			CHECK(++steps <= index->size);
		}
	}
	lfs_entries_open(&entries, index, inode, UINT64_MAX - 5);
	if (S_ISDIR(inode->mode))
		lfs_entries_next(&entries, &entry);
	if (lfs_xattrs_open(&xattrs, index, inode) == LFS_OK) {
		while (lfs_xattrs_next(&xattrs, &xattr) == LFS_OK) {
			lfs_xattr_is(&xattr, "user.note", 9);
			for (i = 0; i < xattr.value_size; i++)
				seen ^= xattr.value[i];
		}
	}
}

void exercise_index(const struct lfs_index *index)
{
	struct lfs_inode inode;
	uint64_t nid;

	for (nid = 0; nid <= index->size / 32 + 2; nid++)
		if (lfs_index_inode(index, nid, &inode) == LFS_OK)
			exercise_inode(index, &inode);
	CHECK(lfs_index_inode(index, UINT64_MAX, &inode) == LFS_CORRUPT);
	CHECK(lfs_index_inode(index, UINT64_MAX / 32 + 1, &inode) ==
	      LFS_CORRUPT);
}

void exercise_table(const struct lfs_table *table)
{
	uint64_t start, first, last;
	unsigned i;

	for (i = 0; i < 200; i++) {
		start = random_number() % 20000;
		if (lfs_table_covering(table, start, start + 1 + i * 50, &first,
				       &last) == LFS_OK)
			CHECK(first < last && last <= table->count);
		lfs_table_overlapping(table, start, start + 1 + i * 50, &first,
				      &last);
		CHECK(first <= last && last <= table->count);
	}
	lfs_table_covering(table, UINT64_MAX - 4, UINT64_MAX, &first, &last);
	CHECK(lfs_table_covering(table, 5, 5, &first, &last) == LFS_CORRUPT);
}

void exercise_provenance(const struct lfs_provenance *provenance)
{
	struct lfs_origin origin;
	volatile uint8_t seen = 0;
	uint64_t nid;

	for (nid = 0; nid < 200; nid++)
		if (lfs_provenance_of(provenance, nid, &origin) == LFS_OK &&
		    origin.digest)
			seen ^= origin.digest[31];
	lfs_provenance_of(provenance, UINT64_MAX, &origin);
}

static uint64_t seed = 88172645463325252u;

void random_start(uint64_t number)
{
	seed = 88172645463325252u ^ (number * 0x9E3779B97F4A7C15u);
	seed += !seed; /* it would stay 0 */
}

uint32_t random_number(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 16);
}
