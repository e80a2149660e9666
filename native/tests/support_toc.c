/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#define D64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define FILE_HEAD "\"type\":\"reg\",\"digest\":\"sha256:" D64 "\","

const char TOC_SAMPLE[] =
	"{\"version\":1,\"entries\":["
	"{\"name\":\"dir/\",\"type\":\"dir\",\"mode\":493,\"uid\":5,\"gid\":6,"
	"\"modtime\":\"2024-02-29T12:00:00.25Z\"},\n"
	"{\"name\":\"empty\"," FILE_HEAD "\"xattrs\":{\"user.a\":\"YQ==\"}},"
	"{\"name\":\"file\"," FILE_HEAD "\"size\":9,\"offset\":10},"
	"{\"name\":\"dir/big\"," FILE_HEAD "\"size\":12,\"offset\":20,"
	"\"chunkSize\":8,\"chunkDigest\":\"sha256:" D64 "\"},"
	"{\"name\":\"dir/"
	"big\",\"type\":\"chunk\",\"chunkOffset\":8,\"offset\":30,"
	"\"chunkDigest\":\"sha256:" D64 "\"},"
	"{\"name\":\"link\",\"type\":\"symlink\",\"linkName\":\"d\\u0069r/"
	"\\ud83d\\ude00\"},"
	"{\"name\":\"more\",\"type\":\"hardlink\",\"linkName\":\"./dir//big\"},"
	"{\"name\":\"n/.wh.x\",\"type\":\"reg\"},"
	"{\"name\":\"n/null\",\"type\":\"char\",\"devMajor\":1,\"devMinor\":3}"
	"],\"tarSplitDigest\":\"sha25\"}";

struct lfs_toc *scan_toc(const uint8_t *json, size_t size)
{
	static const struct lfs_toc_limits limits = {
		.blob_size = 1000,
		.ratio = 1032,
		.entries = 1000,
		.path_size = 4095,
		.component_size = 255,
		.depth = 1024,
		.implied_size = 1 << 20,
		.link_size = 4095,
		.chunk_size = 1 << 28,
		.stream_size = 1 << 30,
		.device_size = (uint64_t)1 << 44,
		.block_size = 4096,
		.codec = 1,
	};
	struct lfs_toc *toc = NULL;

	return lfs_toc_scan(&toc, json, size, &limits) == LFS_OK ? toc : NULL;
}

uint8_t *write_index(struct lfs_toc *const *tocs, size_t count, size_t *size)
{
	static const uint8_t body[64];
	uint64_t inode_count, image_size, provenance_size;
	uint8_t *image = NULL, *provenance = NULL;
	struct lfs_body bodies[64];
	struct lfs_tree *tree;
	size_t i, found;

	if (lfs_tree_merge(&tree, tocs, count) != LFS_OK)
		return NULL;
	found = lfs_tree_xattrs(tree, NULL, 0);
	for (i = 0; i < 64; i++) {
		bodies[i].bytes = body;
		bodies[i].size = i % 2 ? 0 : 16 + 4 * (i % 12);
	}
	if (found <= 64 &&
	    lfs_tree_number(tree, 1152 + 128 * count, bodies, found,
			    count > 1 ? &bodies[2] : NULL) == LFS_OK) {
		lfs_tree_sizes(tree, &inode_count, &image_size,
			       &provenance_size);
		image = calloc(1, image_size);
		provenance = malloc(provenance_size + 1);
		CHECK(image && provenance);
		CHECK(lfs_tree_write(tree, image, provenance) == LFS_OK);
		*size = image_size;
	}
	free(provenance);
	lfs_tree_free(tree);
	return image;
}

void put_superblock(uint8_t *image, size_t size, unsigned device_count)
{
	uint8_t *superblock = image + 1024;
	unsigned i;

	put_number(superblock, 0xE0F5E1E2, 4);
	put_number(superblock + 8, 3, 4);
	superblock[12] = 12;
	put_number(superblock + 14, (1152 + 128 * device_count) / 32, 2);
	put_number(superblock + 16, 1000, 8);
	put_number(superblock + 36, size / 4096, 4);
	put_number(superblock + 80, 0xC, 4);
	put_number(superblock + 86, device_count, 2);
	put_number(superblock + 88, 9, 2);
	for (i = 0; i < device_count; i++)
		put_number(image + 1152 + 128 * i + 64, 1 << 20, 4);
}

void exercise_toc(const uint8_t *json, size_t size)
{
	struct lfs_toc *tocs[2];
	struct lfs_toc_extent extent;
	struct lfs_toc_facts facts;
	struct lfs_index index;
	uint8_t *records, *image;
	size_t image_size;

	tocs[0] = tocs[1] = scan_toc(json, size);
	if (!tocs[0])
		return;
	lfs_toc_facts(tocs[0], &facts);
	records = malloc(facts.chunk_count * LFS_RECORD_SIZE + 1);
	CHECK(records);
	(void)lfs_toc_table(tocs[0], size, records, &extent);
	free(records);
	image = write_index(tocs, 2, &image_size);
	if (image) {
		put_superblock(image, image_size, 2);
		CHECK(lfs_index_open(&index, image, image_size) == LFS_OK);
		exercise_index(&index);
		free(image);
	}
	lfs_toc_free(tocs[0]);
}
