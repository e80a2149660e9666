/* SPDX-License-Identifier: Apache-2.0 */
/* A good index gives the right answers. */
#include <string.h>
#include <sys/stat.h>

#include "support.h"

static uint64_t look(const struct lfs_index *index, uint64_t directory,
		     const char *name)
{
	struct lfs_inode inode;
	enum lfs_result result;
	uint64_t nid;

	CHECK(lfs_index_inode(index, directory, &inode) == LFS_OK);
	result = lfs_index_lookup(index, &inode, (const uint8_t *)name,
				  strlen(name), &nid);
	CHECK(result == LFS_OK || result == LFS_ABSENT);
	return result == LFS_OK ? nid : 0;
}

static void check_names(const struct made *made, const struct lfs_index *index)
{
	static const char *const absent[] = {"",    "!",     "-",    "...",
					     "a",   "bi",    "bigg", "dirs",
					     "nul", "null2", "z"};
	char name[8];
	unsigned i;

	CHECK(look(index, made->root, ".") == made->root);
	CHECK(look(index, made->root, "..") == made->root);
	CHECK(look(index, made->root, "big") == made->big);
	CHECK(look(index, made->root, "null") == made->null);
	CHECK(look(index, made->dir, "..") == made->root);
	for (i = 0; i < sizeof(absent) / sizeof(*absent); i++)
		CHECK(look(index, made->root, absent[i]) == 0);
	for (i = 0; i < 2 * DIR_COUNT; i++) {
		snprintf(name, sizeof(name), "n%04u", i % 10000);
		CHECK((look(index, made->dir, name) != 0) == (i < DIR_COUNT));
	}
}

static void check_entries(const struct made *made,
			  const struct lfs_index *index)
{
	struct lfs_entries entries, again;
	struct lfs_entry entry, same;
	struct lfs_inode inode;
	uint64_t offset = 0;
	unsigned count = 0;
	char name[8];

	CHECK(lfs_index_inode(index, made->dir, &inode) == LFS_OK);
	CHECK(lfs_entries_open(&entries, index, &inode, 0) == LFS_OK);
	while (lfs_entries_next(&entries, &entry) == LFS_OK) {
		/* A walk can begin at any entry */
		CHECK(lfs_entries_open(&again, index, &inode, offset) ==
		      LFS_OK);
		CHECK(lfs_entries_next(&again, &same) == LFS_OK);
		CHECK(same.name == entry.name && same.nid == entry.nid &&
		      same.next_offset == entry.next_offset);
		CHECK(entry.next_offset > offset);
		offset = entry.next_offset;
		if (count >= 2) {
			snprintf(name, sizeof(name), "n%04u",
				 (count - 2) % 10000);
			CHECK(entry.name_size == 5 &&
			      !memcmp(entry.name, name, 5));
			CHECK(entry.nid == made->empty && entry.kind == 1);
		}
		count++;
	}
	CHECK(count == DIR_COUNT + 2);
	CHECK(lfs_entries_open(&again, index, &inode, offset) == LFS_OK);
	CHECK(lfs_entries_next(&again, &same) == LFS_ABSENT);
}

static void check_inodes(const struct made *made, const struct lfs_index *index)
{
	const uint8_t *target;
	struct lfs_extent extent;
	struct lfs_inode inode;
	uint64_t nid;
	size_t size;

	CHECK(lfs_index_inode(index, made->big, &inode) == LFS_OK);
	CHECK(inode.mode == (S_IFREG | 0644) && inode.size == BIG_SIZE);
	CHECK(inode.uid == 1000 && inode.gid == 100000 && inode.nlink == 1);
	CHECK(inode.mtime == -86400 && inode.mtime_nanoseconds == 5);
	CHECK(lfs_index_extent(index, &inode, &extent) == LFS_OK);
	CHECK(extent.device == 1 && !extent.offset && extent.size == BIG_SIZE);
	CHECK(lfs_index_readlink(index, &inode, &target, &size) ==
	      LFS_WRONG_KIND);
	CHECK(lfs_index_lookup(index, &inode, target, 0, &nid) ==
	      LFS_WRONG_KIND);
	CHECK(lfs_index_inode(index, made->empty, &inode) == LFS_OK);
	CHECK(lfs_index_extent(index, &inode, &extent) == LFS_OK);
	CHECK(!extent.device && !extent.size);
	CHECK(lfs_index_inode(index, made->link, &inode) == LFS_OK);
	CHECK(lfs_index_readlink(index, &inode, &target, &size) == LFS_OK);
	CHECK(size == strlen(LINK_TARGET) &&
	      !memcmp(target, LINK_TARGET, size));
	CHECK(lfs_index_extent(index, &inode, &extent) == LFS_WRONG_KIND);
	CHECK(lfs_index_inode(index, made->null, &inode) == LFS_OK);
	CHECK(inode.rdev == 0x103);
	CHECK(lfs_index_device_size(index, 0) == 0);
	CHECK(lfs_index_device_size(index, 1) == 12288);
	CHECK(lfs_index_device_size(index, 3) == 0);
}

static void check_xattrs(const struct made *made, const struct lfs_index *index)
{
	static const char *const names[] = {"user.lazyfs.file.x",
					    "user.lazyfs.schema", "user.note",
					    "system.posix_acl_access"};
	struct lfs_xattrs xattrs;
	struct lfs_xattr xattr;
	struct lfs_inode inode;
	unsigned i;

	CHECK(lfs_index_inode(index, made->root, &inode) == LFS_OK);
	CHECK(lfs_xattrs_open(&xattrs, index, &inode) == LFS_OK);
	for (i = 0; i < 4; i++) {
		CHECK(lfs_xattrs_next(&xattrs, &xattr) == LFS_OK);
		CHECK(lfs_xattr_is(&xattr, names[i], strlen(names[i])));
		CHECK(!lfs_xattr_is(&xattr, names[i], strlen(names[i]) - 1));
		CHECK(!lfs_xattr_is(&xattr, "user.notf", 9));
	}
	CHECK(lfs_xattrs_next(&xattrs, &xattr) == LFS_ABSENT);
	CHECK(lfs_index_inode(index, made->big, &inode) == LFS_OK);
	CHECK(lfs_xattrs_open(&xattrs, index, &inode) == LFS_OK);
	CHECK(lfs_xattrs_next(&xattrs, &xattr) == LFS_ABSENT);
}

int main(void)
{
	static struct made made;
	struct lfs_index index;

	make_image(&made);
	CHECK(lfs_index_open(&index, made.index, INDEX_SIZE) == LFS_OK);
	CHECK(index.root_nid == made.root && index.inode_count == 7 &&
	      index.device_count == 2);
	check_names(&made, &index);
	check_entries(&made, &index);
	check_inodes(&made, &index);
	check_xattrs(&made, &index);
	return 0;
}
