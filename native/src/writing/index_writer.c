/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A merged tree written as a rootfs index with its provenance.  The rules are
 * those of lazyfs/rootfs/{erofs_writer,erofs_directory,provenance}.py, whose
 * bytes these are.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lazyfs_tree.h"
#include "reading/bytes.h"
#include "reading/erofs_format.h"
#include "toc.h"
#include "tree.h"

#define PROVENANCE_SIZE 40
#define HAS_DIGEST 1
#define MAX_FILE_SIZE ((uint64_t)BLOCK_SIZE << 31)
#define MAX_IMAGE_SIZE ((uint64_t)1 << 32)
#define NO_BLOCK 0xFFFFFFFF
#define IMPLICIT_MODE 0755

static const uint8_t EMPTY_DIGEST[DIGEST_SIZE] = {
	0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4,
	0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b,
	0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
};

/* ---- Numbering ----------------------------------------------------------- */

/* One name of a directory, for its data. */
struct item {
	const uint8_t *name;
	uint32_t name_size;
	uint32_t nid;
	uint8_t kind;
};

static int compare_with_dots(const struct toc_node *node, unsigned dots)
{
	struct toc_node other = {.name = (const uint8_t *)"..",
				 .name_size = dots};

	return tree_compare_names(node, &other);
}

/* List the names of a directory with the dots among them. */
static uint32_t list(const struct lfs_tree *tree, const struct inode *inode,
		     struct item *items)
{
	uint32_t number = inode->node.first_child, count = 0;
	const struct inode *child;
	unsigned dots = 1;

	while (number != NONE || dots <= 2) {
		child = number == NONE ? NULL : &tree->inodes[number];
		if (dots <= 2 &&
		    (!child || compare_with_dots(&child->node, dots) > 0)) {
			items[count].name = (const uint8_t *)"..";
			items[count].name_size = dots;
			items[count].kind = KIND_DIRECTORY;
			items[count++].nid =
				dots == 1 ? inode->nid
					  : tree->inodes[inode->parent].nid;
			dots++;
			continue;
		}
		items[count].name = child->node.name;
		items[count].name_size = child->node.name_size;
		number = child->node.next;
		if (child->node.kind == KIND_HARDLINK)
			child = &tree->inodes[child->node.target];
		items[count].kind = child->node.kind;
		items[count++].nid = child->nid;
	}
	return count;
}

/* Return where the block ends that begins with item 'first', and its size. */
static uint32_t block_end(const struct item *items, uint32_t first,
			  uint32_t count, uint32_t *used)
{
	uint32_t size;

	for (*used = 0; first < count; first++, *used += size) {
		size = EROFS_DIRENT_SIZE + items[first].name_size;
		if (*used + size > BLOCK_SIZE)
			break;
	}
	return first;
}

/* Write the data of a directory where 'data' is not NULL; return their size. */
static uint64_t write_directory(const struct item *items, uint32_t count,
				uint8_t *data)
{
	uint32_t first, end, used = 0, name, i;
	uint64_t size = 0;
	uint8_t *dirent;

	for (first = 0; first < count; first = end) {
		end = block_end(items, first, count, &used);
		if (data) {
			name = (end - first) * EROFS_DIRENT_SIZE;
			memset(data + size, 0, BLOCK_SIZE);
			for (i = first; i < end; i++) {
				dirent = data + size +
					 (i - first) * EROFS_DIRENT_SIZE;
				lfs_store64(dirent, items[i].nid);
				lfs_store16(dirent + 8, (uint16_t)name);
				dirent[10] = items[i].kind;
				memcpy(data + size + name, items[i].name,
				       items[i].name_size);
				name += items[i].name_size;
			}
		}
		size += end == count ? used : BLOCK_SIZE;
	}
	return size;
}

/* Say whether 'tail' bytes of data go behind an inode of 'size' bytes. */
static bool is_inline(uint64_t size, uint64_t tail)
{
	return tail > 0 && size + tail <= BLOCK_SIZE;
}

/* Find a place for an inode with data; the size with what lies behind it. */
static void place(struct lfs_tree *tree, struct inode *inode,
		  uint64_t *position, uint64_t *size, uint64_t data_size)
{
	uint64_t blocks = data_size / BLOCK_SIZE, tail = data_size % BLOCK_SIZE;

	if (is_inline(*size, tail)) {
		*size += tail;
		if (*position % BLOCK_SIZE + *size > BLOCK_SIZE)
			*position += (BLOCK_SIZE - *position % BLOCK_SIZE) %
				     BLOCK_SIZE;
	} else if (tail) {
		blocks++;
	}
	inode->block = (uint32_t)tree->block_count;
	tree->block_count += blocks;
}

static bool number_inode(struct lfs_tree *tree, struct inode *inode,
			 uint64_t *position, struct item *items)
{
	const struct toc_entry *entry = tree_entry(tree, inode);
	uint64_t size = EROFS_INODE_SIZE + inode->body.size, data_size;

	if (inode->node.kind == KIND_REGULAR) {
		if (entry->size > MAX_FILE_SIZE)
			return false;
		if (entry->size)
			size += (8 - size % 8) % 8 + EROFS_CHUNK_INDEX_SIZE;
	} else if (inode->node.kind == KIND_DIRECTORY) {
		data_size =
			write_directory(items, list(tree, inode, items), NULL);
		if (data_size > tree->most_data)
			tree->most_data = data_size;
		place(tree, inode, position, &size, data_size);
	} else if (inode->node.kind == KIND_SYMLINK) {
		if (entry->link_size > EROFS_MAX_SYMLINK)
			return false;
		place(tree, inode, position, &size, entry->link_size);
	}
	inode->nid = (uint32_t)(*position / EROFS_SLOT_SIZE);
	*position += size + (EROFS_SLOT_SIZE - size % EROFS_SLOT_SIZE) %
				    EROFS_SLOT_SIZE;
	return *position + (tree->block_count + 2) * BLOCK_SIZE <
	       MAX_IMAGE_SIZE;
}

enum lfs_result lfs_tree_number(struct lfs_tree *tree, uint64_t start,
				const struct lfs_body *bodies, size_t count,
				const struct lfs_body *root)
{
	const struct toc_entry *entry;
	struct item *items;
	struct inode *inode;
	bool fits = true;
	size_t used = 0;
	uint32_t i;

	if (start % EROFS_SLOT_SIZE || start >= MAX_IMAGE_SIZE)
		return LFS_UNUSUAL;
	items = malloc((tree->most_children + 2) * sizeof(*items));
	if (!items)
		return LFS_UNUSUAL;
	tree->block_count = tree->most_data = 0;
	for (i = 0; i < tree->order_count && fits; i++) {
		inode = &tree->inodes[tree->order[i]];
		entry = tree_entry(tree, inode);
		memset(&inode->body, 0, sizeof(inode->body));
		if (entry && entry->xattrs) {
			fits = used < count;
			if (fits)
				inode->body = bodies[used++];
		}
		if (i == 0 && root)
			inode->body = *root;
		fits = fits && inode->body.size < MAX_IMAGE_SIZE / 16 &&
		       number_inode(tree, inode, &start, items);
	}
	free(items);
	tree->end = start;
	return fits && used == count ? LFS_OK : LFS_UNUSUAL;
}

/* ---- Writing ------------------------------------------------------------- */

static uint64_t first_block(const struct lfs_tree *tree)
{
	return (tree->end + BLOCK_SIZE - 1) / BLOCK_SIZE;
}

void lfs_tree_sizes(const struct lfs_tree *tree, uint64_t *inode_count,
		    uint64_t *image_size, uint64_t *provenance_size)
{
	*inode_count = tree->order_count;
	*image_size = (first_block(tree) + tree->block_count) * BLOCK_SIZE;
	*provenance_size = (uint64_t)tree->provenance_count * PROVENANCE_SIZE;
}

uint64_t lfs_tree_root(const struct lfs_tree *tree)
{
	return tree->inodes[0].nid;
}

static uint32_t chunk_bits(uint64_t size)
{
	uint64_t blocks = (size - 1) / BLOCK_SIZE;
	uint32_t bits = 0;

	for (; blocks; blocks >>= 1)
		bits++;
	return bits;
}

/* Write an inode's data to their places; return its format, and its union. */
static uint16_t write_data(const struct lfs_tree *tree, uint8_t *image,
			   const struct inode *inode, uint64_t inode_end,
			   const uint8_t *data, uint64_t size, uint32_t *block)
{
	uint64_t tail = size % BLOCK_SIZE, start;
	uint16_t format = EROFS_FORMAT_PLAIN;

	if (is_inline(EROFS_INODE_SIZE + inode->body.size, tail)) {
		format = EROFS_FORMAT_INLINE;
		size -= tail;
		memcpy(image + inode_end, data + size, tail);
	}
	*block = NO_BLOCK;
	if (size) {
		start = first_block(tree) + inode->block;
		memcpy(image + start * BLOCK_SIZE, data, size);
		*block = (uint32_t)start;
	}
	return format;
}

/* What one inode's header says, as far as its kind decides. */
struct header {
	uint64_t size;
	uint32_t mode, data;
	uint16_t format;
};

static void write_regular(const struct inode *inode,
			  const struct toc_entry *entry, uint8_t *image,
			  uint64_t end, struct header *header)
{
	header->mode |= S_IFREG;
	header->data = NO_BLOCK;
	if (!entry->size)
		return;
	header->size = entry->size;
	header->format = EROFS_FORMAT_CHUNKED;
	header->data = EROFS_CHUNK_INDEXES | chunk_bits(entry->size);
	end += (8 - end % 8) % 8;
	lfs_store16(image + end + 2, (uint16_t)(inode->layer + 1));
	lfs_store32(image + end + 4,
		    (uint32_t)(entry->device_offset / BLOCK_SIZE));
}

static void write_inode(const struct lfs_tree *tree, uint32_t number,
			uint8_t *image, struct item *items, uint8_t *scratch)
{
	const struct inode *inode = &tree->inodes[tree->order[number]];
	const struct toc_entry *entry = tree_entry(tree, inode);
	uint64_t at = (uint64_t)inode->nid * EROFS_SLOT_SIZE;
	struct header header = {.format = EROFS_FORMAT_PLAIN};
	uint64_t end = at + EROFS_INODE_SIZE;
	uint16_t words = 0;

	if (inode->body.size) {
		memcpy(image + end, inode->body.bytes, inode->body.size);
		end += inode->body.size;
		words = (uint16_t)((inode->body.size -
				    EROFS_XATTR_HEADER_SIZE) /
					   4 +
				   1);
	}
	header.mode = entry ? entry->mode : IMPLICIT_MODE;
	switch (inode->node.kind) {
	case KIND_REGULAR:
		write_regular(inode, entry, image, end, &header);
		break;
	case KIND_DIRECTORY:
		header.mode |= S_IFDIR;
		header.size = write_directory(items, list(tree, inode, items),
					      scratch);
		header.format = write_data(tree, image, inode, end, scratch,
					   header.size, &header.data);
		break;
	case KIND_SYMLINK:
		header.mode |= S_IFLNK;
		header.size = entry->link_size;
		header.format = write_data(tree, image, inode, end, entry->link,
					   header.size, &header.data);
		break;
	case KIND_FIFO:
		header.mode |= S_IFIFO;
		break;
	default:
		header.mode |=
			inode->node.kind == KIND_CHAR ? S_IFCHR : S_IFBLK;
		header.data = (entry->minor & 0xFF) | entry->major << 8 |
			      (entry->minor & ~0xFFu) << 12;
	}
	lfs_store16(image + at, header.format);
	lfs_store16(image + at + 2, words);
	lfs_store16(image + at + 4, (uint16_t)header.mode);
	lfs_store64(image + at + 8, header.size);
	lfs_store32(image + at + 16, header.data);
	lfs_store32(image + at + 20, number + 1);
	lfs_store32(image + at + 44, inode->nlink);
	if (!entry)
		return;
	lfs_store32(image + at + 24, entry->uid);
	lfs_store32(image + at + 28, entry->gid);
	lfs_store64(image + at + 32, (uint64_t)entry->seconds);
	lfs_store32(image + at + 40, entry->nanoseconds);
}

static void write_provenance(const struct lfs_tree *tree, uint8_t *record)
{
	const struct toc_entry *entry;
	const struct inode *inode;
	const uint8_t *digest;
	uint32_t i;

	for (i = 0; i < tree->order_count; i++) {
		inode = &tree->inodes[tree->order[i]];
		entry = tree_entry(tree, inode);
		if (!entry)
			continue;
		digest = NULL;
		if (entry->kind == KIND_REGULAR) {
			if (entry->chunk_count == 0)
				digest = EMPTY_DIGEST;
			else if (entry->chunk_count == 1)
				digest = tree->tocs[inode->layer]
						 ->chunks[entry->first_chunk]
						 .digest;
			else if (entry->has_digest)
				digest = entry->digest;
		}
		memset(record, 0, PROVENANCE_SIZE);
		lfs_store32(record, inode->nid);
		lfs_store16(record + 4, (uint16_t)inode->layer);
		lfs_store16(record + 6, digest ? HAS_DIGEST : 0);
		if (digest)
			memcpy(record + 8, digest, DIGEST_SIZE);
		record += PROVENANCE_SIZE;
	}
}

enum lfs_result lfs_tree_write(const struct lfs_tree *tree, uint8_t *image,
			       uint8_t *provenance)
{
	struct item *items;
	uint8_t *scratch;
	uint32_t i;

	items = malloc((tree->most_children + 2) * sizeof(*items));
	scratch = malloc(tree->most_data + BLOCK_SIZE);
	if (items && scratch) {
		for (i = 0; i < tree->order_count; i++)
			write_inode(tree, i, image, items, scratch);
		write_provenance(tree, provenance);
	}
	free(items);
	free(scratch);
	return items && scratch ? LFS_OK : LFS_UNUSUAL;
}
