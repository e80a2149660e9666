/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Read a rootfs index in place.  A place is a byte offset in the index.
 *
 * The checks and their order are those of lazyfs/rootfs/erofs_reader.py, the
 * twin of this file: what one refuses, the other refuses.
 */
#include "erofs_index.h"

#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "erofs_format.h"
#include "lazyfs_index.h"

enum lfs_result lfs_index_open(struct lfs_index *index, const uint8_t *bytes,
			       size_t size)
{
	const uint8_t *superblock = bytes + EROFS_SUPERBLOCK;
	struct lfs_inode root;
	uint32_t features;

	if (size < EROFS_SUPERBLOCK + EROFS_SUPERBLOCK_SIZE)
		return LFS_CORRUPT;
	if (lfs_load32(superblock) != EROFS_MAGIC)
		return LFS_CORRUPT;
	index->bytes = bytes;
	index->size = size;
	/* Block size; directory blocks are ordinary ones */
	index->block_bits = superblock[12];
	if (index->block_bits < EROFS_MIN_BLOCK_BITS ||
	    index->block_bits > EROFS_MAX_BLOCK_BITS || superblock[90])
		return LFS_CORRUPT;
	/* Features: a device table, perhaps chunks, nothing else */
	features = lfs_load32(superblock + 80);
	if ((features | EROFS_CHUNKED_FILE) !=
	    (EROFS_CHUNKED_FILE | EROFS_DEVICE_TABLE))
		return LFS_CORRUPT;
	/* Blocks of the primary device */
	if ((uint64_t)lfs_load32(superblock + 36) << index->block_bits != size)
		return LFS_CORRUPT;
	/* First metadata block */
	index->metadata = (uint64_t)lfs_load32(superblock + 40)
			  << index->block_bits;
	if (index->metadata > size)
		return LFS_CORRUPT;
	/* Device table */
	index->device_count = lfs_load16(superblock + 86);
	index->devices =
		(size_t)lfs_load16(superblock + 88) * EROFS_DEVICE_SLOT_SIZE;
	if (index->devices +
		    (size_t)index->device_count * EROFS_DEVICE_SLOT_SIZE >
	    size)
		return LFS_CORRUPT;
	/* Root */
	index->root_nid = lfs_load16(superblock + 14);
	index->inode_count = lfs_load64(superblock + 16);
	if (lfs_index_inode(index, index->root_nid, &root) != LFS_OK ||
	    !S_ISDIR(root.mode))
		return LFS_CORRUPT;
	return LFS_OK;
}

uint64_t lfs_index_device_size(const struct lfs_index *index, uint32_t device)
{
	const uint8_t *slot;

	if (!device || device > index->device_count)
		return 0;
	slot = index->bytes + index->devices +
	       (size_t)(device - 1) * EROFS_DEVICE_SLOT_SIZE;
	return (uint64_t)lfs_load32(slot + EROFS_DEVICE_BLOCKS)
	       << index->block_bits;
}

enum lfs_result lfs_index_inode(const struct lfs_index *index, uint64_t nid,
				struct lfs_inode *inode)
{
	const uint8_t *bytes;
	uint64_t place;

	if (!nid || nid > index->size / EROFS_SLOT_SIZE)
		return LFS_CORRUPT;
	place = index->metadata + nid * EROFS_SLOT_SIZE;
	if (place > index->size || index->size - place < EROFS_INODE_SIZE)
		return LFS_CORRUPT;
	bytes = index->bytes + place;
	inode->nid = nid;
	inode->place = (size_t)place;
	inode->format = lfs_load16(bytes);
	inode->xattr_words = lfs_load16(bytes + 2);
	inode->mode = lfs_load16(bytes + 4);
	inode->size = lfs_load64(bytes + 8);
	inode->data = lfs_load32(bytes + 16);
	inode->uid = lfs_load32(bytes + 24);
	inode->gid = lfs_load32(bytes + 28);
	inode->mtime = (int64_t)lfs_load64(bytes + 32);
	inode->mtime_nanoseconds = lfs_load32(bytes + 40);
	inode->nlink = lfs_load32(bytes + 44);
	inode->rdev = 0;
	/* High bits of the start block: no index is that large */
	if (lfs_load16(bytes + 6))
		return LFS_CORRUPT;
	if (inode->format != EROFS_FORMAT_PLAIN &&
	    inode->format != EROFS_FORMAT_INLINE &&
	    inode->format != EROFS_FORMAT_CHUNKED)
		return LFS_CORRUPT;
	switch (inode->mode & S_IFMT) {
	case S_IFCHR:
	case S_IFBLK:
		inode->rdev = inode->data;
		break;
	case S_IFREG:
	case S_IFDIR:
	case S_IFIFO:
	case S_IFLNK:
		break;
	default:
		return LFS_CORRUPT;
	}
	return LFS_OK;
}

size_t lfs_xattrs_end(const struct lfs_inode *inode)
{
	size_t end = inode->place + EROFS_INODE_SIZE;

	if (inode->xattr_words)
		end += EROFS_XATTR_HEADER_SIZE + 4 * (inode->xattr_words - 1u);
	return end;
}

/* Find data block number 'block' of a directory or symlink. */
static enum lfs_result data_block(const struct lfs_index *index,
				  const struct lfs_inode *inode, uint64_t block,
				  size_t *start_ret, size_t *size_ret)
{
	uint64_t block_size = (uint64_t)1 << index->block_bits;
	uint64_t offset = block << index->block_bits;
	uint64_t size, start;

	if (offset >> index->block_bits != block || offset >= inode->size)
		return LFS_CORRUPT;
	size = inode->size - offset;
	if (size > block_size)
		size = block_size;
	if (inode->format == EROFS_FORMAT_INLINE && size < block_size) {
		start = lfs_xattrs_end(inode);
	} else if (inode->format != EROFS_FORMAT_CHUNKED) {
		if (offset > index->size)
			return LFS_CORRUPT;
		start = ((uint64_t)inode->data << index->block_bits) + offset;
	} else {
		return LFS_CORRUPT;
	}
	if (start > index->size || index->size - start < size)
		return LFS_CORRUPT;
	*start_ret = (size_t)start;
	*size_ret = (size_t)size;
	return LFS_OK;
}

/* Find a directory's block and the number of entries in it, at least one. */
static enum lfs_result directory_block(const struct lfs_index *index,
				       const struct lfs_inode *directory,
				       uint64_t block, size_t *start,
				       size_t *size, uint64_t *count)
{
	enum lfs_result result;
	size_t first;

	result = data_block(index, directory, block, start, size);
	if (result != LFS_OK)
		return result;
	if (*size < EROFS_DIRENT_SIZE)
		return LFS_CORRUPT;
	/* The names begin where the entries end */
	first = lfs_load16(index->bytes + *start + EROFS_DIRENT_NAME);
	if (!first || first % EROFS_DIRENT_SIZE || first > *size)
		return LFS_CORRUPT;
	*count = first / EROFS_DIRENT_SIZE;
	return LFS_OK;
}

/* Find the name of entry 'number' of the 'count' in the block at 'start'. */
static enum lfs_result entry_name(const struct lfs_index *index, size_t start,
				  size_t size, uint64_t number, uint64_t count,
				  const uint8_t **name, size_t *name_size)
{
	const uint8_t *block = index->bytes + start;
	const uint8_t *entry = block + number * EROFS_DIRENT_SIZE;
	size_t first = lfs_load16(entry + EROFS_DIRENT_NAME);
	const uint8_t *padding;
	size_t last;

	*name = block + first;
	if (number + 1 < count) {
		last = lfs_load16(entry + EROFS_DIRENT_SIZE +
				  EROFS_DIRENT_NAME);
		if (!first || first > last || last > size)
			return LFS_CORRUPT;
		*name_size = last - first;
		return LFS_OK;
	}
	if (first > size)
		return LFS_CORRUPT;
	/* The last name of a block ends at its first NUL */
	padding = memchr(*name, 0, size - first);
	*name_size = padding ? (size_t)(padding - *name) : size - first;
	return LFS_OK;
}

enum lfs_result lfs_index_lookup(const struct lfs_index *index,
				 const struct lfs_inode *directory,
				 const uint8_t *name, size_t name_size,
				 uint64_t *nid)
{
	uint64_t block_mask = ((uint64_t)1 << index->block_bits) - 1;
	uint64_t low = 0, high, middle, count;
	size_t start, size, found_size;
	enum lfs_result result;
	const uint8_t *found;
	int order;

	if (!S_ISDIR(directory->mode))
		return LFS_WRONG_KIND;
	high = (directory->size >> index->block_bits) +
	       !!(directory->size & block_mask);
	if (!high)
		return LFS_ABSENT;
	/* The last block whose first name is not behind 'name' */
	while (high - low > 1) {
		middle = low + (high - low) / 2;
		result = directory_block(index, directory, middle, &start,
					 &size, &count);
		if (result == LFS_OK)
			result = entry_name(index, start, size, 0, count,
					    &found, &found_size);
		if (result != LFS_OK)
			return result;
		if (lfs_compare_names(found, found_size, name, name_size) <= 0)
			low = middle;
		else
			high = middle;
	}
	result = directory_block(index, directory, low, &start, &size, &count);
	if (result != LFS_OK)
		return result;
	low = 0;
	high = count;
	while (low < high) {
		middle = low + (high - low) / 2;
		result = entry_name(index, start, size, middle, count, &found,
				    &found_size);
		if (result != LFS_OK)
			return result;
		order = lfs_compare_names(found, found_size, name, name_size);
		if (!order) {
			*nid = lfs_load64(index->bytes + start +
					  middle * EROFS_DIRENT_SIZE);
			return LFS_OK;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return LFS_ABSENT;
}

enum lfs_result lfs_entries_open(struct lfs_entries *entries,
				 const struct lfs_index *index,
				 const struct lfs_inode *directory,
				 uint64_t offset)
{
	uint64_t rest = offset & (((uint64_t)1 << index->block_bits) - 1);

	if (!S_ISDIR(directory->mode))
		return LFS_WRONG_KIND;
	entries->index = index;
	entries->directory = directory;
	entries->block = offset >> index->block_bits;
	entries->number = (rest + EROFS_DIRENT_SIZE - 1) / EROFS_DIRENT_SIZE;
	entries->count = 0;
	return LFS_OK;
}

enum lfs_result lfs_entries_next(struct lfs_entries *entries,
				 struct lfs_entry *entry)
{
	const struct lfs_index *index = entries->index;
	const struct lfs_inode *directory = entries->directory;
	uint64_t base = entries->block << index->block_bits;
	enum lfs_result result;
	const uint8_t *bytes;

	while (!entries->count || entries->number >= entries->count) {
		if (entries->count) {
			entries->block++;
			entries->number = 0;
			base = entries->block << index->block_bits;
		}
		if (base >> index->block_bits != entries->block ||
		    base >= directory->size)
			return LFS_ABSENT;
		result = directory_block(index, directory, entries->block,
					 &entries->start, &entries->size,
					 &entries->count);
		if (result != LFS_OK)
			return result;
	}
	bytes = index->bytes + entries->start +
		entries->number * EROFS_DIRENT_SIZE;
	result = entry_name(index, entries->start, entries->size,
			    entries->number, entries->count, &entry->name,
			    &entry->name_size);
	if (result != LFS_OK)
		return result;
	entry->nid = lfs_load64(bytes);
	entry->kind = bytes[EROFS_DIRENT_KIND];
	/* There are kinds 1 to 7; an index holds no sockets (6) */
	if (!entry->name_size || !entry->kind || entry->kind == 6 ||
	    entry->kind > 7)
		return LFS_CORRUPT;
	entries->number++;
	if (entries->number < entries->count)
		entry->next_offset = base + entries->number * EROFS_DIRENT_SIZE;
	else
		entry->next_offset = base + ((uint64_t)1 << index->block_bits);
	return LFS_OK;
}

enum lfs_result lfs_index_readlink(const struct lfs_index *index,
				   const struct lfs_inode *inode,
				   const uint8_t **target, size_t *target_size)
{
	enum lfs_result result;
	size_t start;

	if (!S_ISLNK(inode->mode))
		return LFS_WRONG_KIND;
	if (inode->size > EROFS_MAX_SYMLINK)
		return LFS_CORRUPT;
	result = data_block(index, inode, 0, &start, target_size);
	if (result == LFS_OK)
		*target = index->bytes + start;
	return result;
}

enum lfs_result lfs_index_extent(const struct lfs_index *index,
				 const struct lfs_inode *inode,
				 struct lfs_extent *extent)
{
	uint32_t chunk_format = inode->data & 0xFFFF;
	uint64_t device_size, most;
	const uint8_t *chunk;
	size_t place;

	if (!S_ISREG(inode->mode))
		return LFS_WRONG_KIND;
	extent->device = 0;
	extent->offset = 0;
	extent->size = inode->size;
	if (!inode->size)
		return LFS_OK;
	if (inode->format != EROFS_FORMAT_CHUNKED ||
	    (chunk_format & ~EROFS_CHUNK_BITS) != EROFS_CHUNK_INDEXES)
		return LFS_CORRUPT;
	most = (uint64_t)1 << (index->block_bits +
			       (chunk_format & EROFS_CHUNK_BITS));
	if (inode->size > most)
		return LFS_CORRUPT;
	/* The only chunk's index, aligned behind the attributes */
	place = (lfs_xattrs_end(inode) + 7) & ~(size_t)7;
	if (place > index->size || index->size - place < EROFS_CHUNK_INDEX_SIZE)
		return LFS_CORRUPT;
	chunk = index->bytes + place;
	extent->device = lfs_load16(chunk + 2);
	extent->offset = (uint64_t)lfs_load32(chunk + 4) << index->block_bits;
	if (lfs_load16(chunk))
		return LFS_CORRUPT;
	device_size = lfs_index_device_size(index, extent->device);
	if (extent->offset > device_size ||
	    device_size - extent->offset < inode->size)
		return LFS_CORRUPT;
	return LFS_OK;
}
