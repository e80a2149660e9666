/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include <string.h>
#include <sys/stat.h>

void put_number(uint8_t *out, uint64_t value, unsigned size)
{
	while (size--) {
		*out++ = (uint8_t)value;
		value >>= 8;
	}
}

/* Write an inode at slot 'nid'. */
static void put_inode(uint8_t *index, uint64_t nid, unsigned format,
		      unsigned xattr_words, unsigned mode, uint64_t size,
		      uint64_t data)
{
	uint8_t *inode = index + nid * 32;

	put_number(inode, format, 2);
	put_number(inode + 2, xattr_words, 2);
	put_number(inode + 4, mode, 2);
	put_number(inode + 8, size, 8);
	put_number(inode + 16, data, 4);
	put_number(inode + 24, 1000, 4);
	put_number(inode + 28, 100000, 4);
	put_number(inode + 32, (uint64_t)-86400, 8);
	put_number(inode + 40, 5, 4);
	put_number(inode + 44, 1, 4);
}

/* Write a directory block of 'count' names; returns the bytes used. */
static size_t put_names(uint8_t *block, const char (*names)[8],
			const uint64_t *nids, const uint8_t *kinds,
			size_t count)
{
	size_t i, end = 12 * count;

	for (i = 0; i < count; i++) {
		put_number(block + 12 * i, nids[i], 8);
		put_number(block + 12 * i + 8, end, 2);
		block[12 * i + 10] = kinds[i];
		memcpy(block + end, names[i], strlen(names[i]));
		end += strlen(names[i]);
	}
	return end;
}

static size_t put_xattr(uint8_t *out, unsigned prefix, const char *rest,
			const char *value)
{
	size_t rest_size = strlen(rest), value_size = strlen(value);

	out[0] = (uint8_t)rest_size;
	out[1] = (uint8_t)prefix;
	put_number(out + 2, value_size, 2);
	memcpy(out + 4, rest, rest_size);
	memcpy(out + 4 + rest_size, value, value_size);
	return (4 + rest_size + value_size + 3) & ~(size_t)3;
}

static void put_dir(struct made *made, uint64_t nid)
{
	/* 215 entries of 12 + 5 bytes fill a block; the dots come first */
	static char names[DIR_COUNT + 2][8];
	static uint64_t nids[DIR_COUNT + 2];
	static uint8_t kinds[DIR_COUNT + 2];
	size_t i, at = 0, count, used = 0;
	unsigned block = 2;

	for (i = 0; i < DIR_COUNT + 2; i++) {
		snprintf(names[i], sizeof(names[i]), "n%04u",
			 (unsigned)(i - 2) % 10000);
		nids[i] = made->empty;
		kinds[i] = 1;
	}
	strcpy(names[0], ".");
	strcpy(names[1], "..");
	nids[0] = nid;
	nids[1] = made->root;
	kinds[0] = kinds[1] = 2;
	while (at < DIR_COUNT + 2) {
		count = DIR_COUNT + 2 - at < 230 ? DIR_COUNT + 2 - at : 230;
		used = put_names(made->index + block * 4096, names + at,
				 nids + at, kinds + at, count);
		CHECK(used <= 4096);
		at += count;
		block++;
	}
	put_inode(made->index, nid, 1, 0, S_IFDIR | 0755,
		  (block - 3) * 4096 + used, 2);
}

static void put_file(uint8_t *index, uint64_t nid, uint64_t size,
		     unsigned device, unsigned block)
{
	uint8_t *chunk = index + nid * 32 + 64;

	put_inode(index, nid, 9, 0, S_IFREG | 0644, size, 0x20 | 4);
	put_number(chunk + 2, device, 2);
	put_number(chunk + 4, block, 4);
}

static void put_root(struct made *made)
{
	static const char names[][8] = {".",	 "..",	 "big",	 "dir",
					"empty", "file", "link", "null"};
	static const uint8_t kinds[] = {2, 2, 1, 2, 1, 1, 7, 3};
	uint64_t nids[] = {made->root,	made->root, made->big,	made->dir,
			   made->empty, made->file, made->link, made->null};
	uint8_t *xattrs = made->index + made->root * 32 + 64;
	size_t size = 12, used;

	size += put_xattr(xattrs + size, 1, "lazyfs.file.x", "forged");
	size += put_xattr(xattrs + size, 1, "lazyfs.schema", "1");
	size += put_xattr(xattrs + size, 1, "note", "hi");
	size += put_xattr(xattrs + size, 2, "", "acl");
	used = put_names(xattrs + size, names, nids, kinds, 8);
	put_inode(made->index, made->root, 5, (unsigned)(size - 12) / 4 + 1,
		  S_IFDIR | 0755, used, 0);
	CHECK(made->root * 32 + 64 + size + used <= 4096);
}

void make_table(uint8_t *bytes, uint64_t device_size,
		const uint64_t (*records)[2], uint64_t count)
{
	uint64_t i;

	memset(bytes, 0, TABLE_SIZE(count));
	memcpy(bytes, "LFSTABL1", 8);
	put_number(bytes + 8, 1, 4);
	put_number(bytes + 12, 80, 4);
	put_number(bytes + 16, count, 8);
	put_number(bytes + 24, device_size, 8);
	for (i = 0; i < count; i++) {
		put_number(bytes + 64 + 80 * i, records[i][0], 8);
		put_number(bytes + 64 + 80 * i + 8, records[i][1], 8);
	}
}

void make_image(struct made *made)
{
	static const uint64_t big[][2] = {
		{0, 4096}, {4096, 4096}, {8192, BIG_SIZE - 8192}};
	static const uint64_t file[][2] = {{0, FILE_SIZE}};
	uint8_t *superblock = made->index + 1024;
	uint8_t *devices = made->index + 1152;
	uint8_t *origins = made->provenance + 32;

	memset(made, 0, sizeof(*made));
	put_number(superblock, 0xE0F5E1E2, 4);
	put_number(superblock + 8, 3, 4);
	superblock[12] = 12;
	put_number(superblock + 14, 44, 2);
	put_number(superblock + 16, 7, 8);
	put_number(superblock + 36, INDEX_SIZE / 4096, 4);
	put_number(superblock + 80, 0xC, 4);
	put_number(superblock + 86, 2, 2);
	put_number(superblock + 88, 9, 2);
	put_number(devices + 64, 3, 4);
	put_number(devices + 128 + 64, 2, 4);

	made->root = 44;
	made->big = 64;
	made->dir = 68;
	made->empty = 72;
	made->file = 76;
	made->link = 80;
	made->null = 84;
	put_root(made);
	put_file(made->index, made->big, BIG_SIZE, 1, 0);
	put_dir(made, made->dir);
	put_inode(made->index, made->empty, 1, 0, S_IFREG | 0600, 0, 0);
	put_file(made->index, made->file, FILE_SIZE, 2, 0);
	put_inode(made->index, made->link, 5, 0, S_IFLNK | 0777,
		  strlen(LINK_TARGET), 0);
	memcpy(made->index + made->link * 32 + 64, LINK_TARGET,
	       strlen(LINK_TARGET));
	put_inode(made->index, made->null, 1, 0, S_IFCHR | 0666, 0, 0x103);

	make_table(made->tables[0], 12288, big, 3);
	make_table(made->tables[1], 8192, file, 1);
	made->table_sizes[0] = TABLE_SIZE(3);
	made->table_sizes[1] = TABLE_SIZE(1);
	memset(made->states, 2, sizeof(made->states));

	memcpy(made->provenance, "LFSPROV1", 8);
	put_number(made->provenance + 8, 40, 4);
	put_number(made->provenance + 16, 2, 8);
	put_number(origins, made->big, 4);
	put_number(origins + 6, 1, 2);
	memset(origins + 8, 0xAB, 32);
	put_number(origins + 40, made->file, 4);
	put_number(origins + 44, 1, 2);
}
