/* SPDX-License-Identifier: Apache-2.0 */
/* From tables of contents to an index that can be opened.  That it is the right
 * one is for tests/rootfs/test_scanned.py to say. */
#include <string.h>

#include "support.h"

static void test_good(void)
{
	static const char *const names[] = {"empty", "file", "link", "more"};
	struct lfs_inode inode;
	struct lfs_index index;
	struct lfs_toc *toc;
	struct lfs_toc_facts facts;
	uint8_t *image;
	uint64_t child;
	size_t size, i;

	toc = scan_toc((const uint8_t *)TOC_SAMPLE, strlen(TOC_SAMPLE));
	CHECK(toc);
	lfs_toc_facts(toc, &facts);
	CHECK(facts.entry_count == 8 && facts.chunk_count == 3);
	CHECK(facts.device_size == 2 * 4096);
	CHECK(!facts.has_prefetch_end && facts.tar_split_size == 5);
	image = write_index(&toc, 1, &size);
	CHECK(image);
	put_superblock(image, size, 1);
	CHECK(lfs_index_open(&index, image, size) == LFS_OK);
	CHECK(lfs_index_inode(&index, index.root_nid, &inode) == LFS_OK);
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		CHECK(lfs_index_lookup(&index, &inode, (const uint8_t *)names[i],
				       strlen(names[i]),
				       &child) == LFS_OK);
	free(image);
	lfs_toc_free(toc);
}

/* Whatever is wrong, nothing is read or written that should not be. */
static void test_damaged(void)
{
	size_t size = strlen(TOC_SAMPLE), i;
	uint8_t *copy;
	char text[2048];

	for (i = 0; i < size; i++) {
		copy = guarded_copy((const uint8_t *)TOC_SAMPLE, i);
		exercise_toc(copy, i);
		guarded_free(copy, i);
		memcpy(text, TOC_SAMPLE, size);
		text[i] = (char)(text[i] ^ (1 << i % 8));
		exercise_toc((const uint8_t *)text, size);
	}
}

static bool is_plain(const char *text)
{
	static const char names[] = "name\0size";

	return lfs_toc_has_plain_keys((const uint8_t *)text, strlen(text),
				      (const uint8_t *)names,
				      sizeof(names) - 1);
}

static void test_keys(void)
{
	size_t size = strlen(TOC_SAMPLE), i;
	uint8_t *copy;

	CHECK(is_plain("{}") && is_plain(" [ ] ") && is_plain("1"));
	CHECK(is_plain("{\"name\":1,\"size\":[{\"name\":null}]}"));
	CHECK(is_plain("{\"a\":-1.5e3,\"b\":{\"a\":true}}"));
	CHECK(!is_plain("{\"name\":1,\"name\":1}"));
	CHECK(!is_plain("{\"name\":1,\"n\\u0061me\":1}"));
	CHECK(!is_plain("{\"Name\":1}"));
	CHECK(!is_plain("{\"a\":1,\"a\":1}"));
	CHECK(!is_plain("[{\"x\":{\"a\":1,\"a\":1}}]"));
	CHECK(!is_plain("{\"\xc5\xbfize\":1}"));
	CHECK(!is_plain("{\"name\":1} x") && !is_plain("{\"name\":1,}"));
	CHECK(!is_plain("[[[[[[[[[1]]]]]]]]]"));
	for (i = 0; i < size; i++) {
		copy = guarded_copy((const uint8_t *)TOC_SAMPLE, i);
		lfs_toc_has_plain_keys(copy, i, (const uint8_t *)"name", 4);
		guarded_free(copy, i);
	}
}

/* A whiteout that names nothing is for the rules in Python to refuse. */
static void test_bare_whiteouts(void)
{
	static const char *const names[] = {".wh.", "d/.wh..", ".wh...",
					    ".wh.x", "d/.wh..x", ".wh.wh."};
	struct lfs_toc *toc;
	char text[200];
	size_t i;
	int size;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		size = snprintf(text, sizeof(text),
				"{\"version\":1,\"entries\":[{\"name\":\"%s\","
				"\"type\":\"reg\"}]}",
				names[i]);
		toc = scan_toc((const uint8_t *)text, (size_t)size);
		CHECK((toc != NULL) == (i >= 3));
		lfs_toc_free(toc);
	}
}

int main(void)
{
	test_good();
	test_keys();
	test_bare_whiteouts();
	test_damaged();
	return 0;
}
