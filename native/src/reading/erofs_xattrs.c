/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The extended attributes behind an inode of a rootfs index: a header, then for
 * each one name length u8, prefix index u8, value size u16, the name without
 * its prefix, the value, and zeros up to 4 bytes.
 */
#include <string.h>

#include "bytes.h"
#include "erofs_format.h"
#include "erofs_index.h"
#include "lazyfs_index.h"

/* By prefix index; the ACLs' whole names are the prefix. */
static const char *const prefixes[] = {
	NULL,
	"user.",
	"system.posix_acl_access",
	"system.posix_acl_default",
	"trusted.",
	NULL,
	"security.",
};

enum lfs_result lfs_xattrs_open(struct lfs_xattrs *xattrs,
				const struct lfs_index *index,
				const struct lfs_inode *inode)
{
	size_t start = inode->place + EROFS_INODE_SIZE;

	xattrs->index = index;
	xattrs->position = start;
	xattrs->end = start;
	if (!inode->xattr_words)
		return LFS_OK;
	xattrs->end = lfs_xattrs_end(inode);
	/* Shared attributes are never used */
	if (xattrs->end > index->size ||
	    index->bytes[start + EROFS_XATTR_SHARED])
		return LFS_CORRUPT;
	xattrs->position = start + EROFS_XATTR_HEADER_SIZE;
	return LFS_OK;
}

enum lfs_result lfs_xattrs_next(struct lfs_xattrs *xattrs,
				struct lfs_xattr *xattr)
{
	const uint8_t *in_next = xattrs->index->bytes + xattrs->position;
	size_t left, size;
	uint8_t prefix;

	if (xattrs->position >= xattrs->end)
		return LFS_ABSENT;
	left = xattrs->end - xattrs->position;
	if (left < EROFS_XATTR_ENTRY_SIZE)
		return LFS_CORRUPT;
	xattr->rest_size = in_next[0];
	prefix = in_next[1];
	xattr->value_size = lfs_load16(in_next + 2);
	size = EROFS_XATTR_ENTRY_SIZE + xattr->rest_size + xattr->value_size;
	if (size > left || prefix >= sizeof(prefixes) / sizeof(*prefixes) ||
	    !prefixes[prefix])
		return LFS_CORRUPT;
	xattr->prefix = prefixes[prefix];
	xattr->prefix_size = strlen(xattr->prefix);
	xattr->rest = in_next + EROFS_XATTR_ENTRY_SIZE;
	xattr->value = xattr->rest + xattr->rest_size;
	xattrs->position += (size + 3) & ~(size_t)3;
	return LFS_OK;
}

bool lfs_xattr_is(const struct lfs_xattr *xattr, const char *name,
		  size_t name_size)
{
	if (name_size != xattr->prefix_size + xattr->rest_size)
		return false;
	return !memcmp(name, xattr->prefix, xattr->prefix_size) &&
	       !memcmp(name + xattr->prefix_size, xattr->rest,
		       xattr->rest_size);
}
