/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From tables of contents to the rootfs index: reading a layer's.
 *
 * What lazyfs/formats and lazyfs/rootfs do in Python, for what is usual: the
 * results are the same to the byte.  Whatever is rare, wrong or too large is
 * LFS_UNUSUAL, as is a lack of memory, and then the Python twin does the work
 * and says what is wrong.  These functions allocate, in proportion to what they
 * are given; no two threads may use one object at once.
 */
#ifndef LAZYFS_TOC_H
#define LAZYFS_TOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lazyfs_result.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lfs_toc; /* one layer's table of contents */

/* The fields of lazyfs/formats/streams/limits.py; 'ratio' is what a stream may inflate
 * to, and payloads lie in 'blob_size' bytes. */
struct lfs_toc_limits {
	uint64_t blob_size, ratio, entries;
	uint64_t path_size, component_size, depth, implied_size, link_size;
	uint64_t chunk_size, stream_size, device_size, block_size;
	uint8_t codec; /* of every chunk, as the layer table has it */
};

/* What a scanned table of contents says as a whole; 'prefetch_end' is valid
 * where 'has_prefetch_end' is set, 'tar_split' not terminated. */
struct lfs_toc_facts {
	uint64_t entry_count, chunk_count, device_size, prefetch_end;
	bool has_prefetch_end;
	const uint8_t *tar_split;
	size_t tar_split_size;
};

/* Extended attributes of an entry: the JSON object as it was in the document.
 * Names in 'path' are separated by NULs. */
struct lfs_toc_xattrs {
	uint32_t entry;
	const uint8_t *path, *json;
	size_t path_size, json_size;
};

/* lfs_toc_has_plain_keys() says that no object of a JSON document has two equal
 * keys, or one of 'names' (separated by NULs, 32 at most) in another case.
 * False where it does not know. */
bool lfs_toc_has_plain_keys(const uint8_t *json, size_t size,
			    const uint8_t *names, size_t names_size);

/* lfs_toc_scan() reads the JSON of a table of contents, which must stay as long
 * as the result does. */
enum lfs_result lfs_toc_scan(struct lfs_toc **toc, const uint8_t *json,
			     size_t size, const struct lfs_toc_limits *limits);
void lfs_toc_free(struct lfs_toc *toc);
void lfs_toc_facts(const struct lfs_toc *toc, struct lfs_toc_facts *facts);

/* lfs_toc_next_xattrs() finds the first entry from number '*from' on that has
 * extended attributes, and sets '*from' behind it; or LFS_ABSENT. */
enum lfs_result lfs_toc_next_xattrs(const struct lfs_toc *toc, uint32_t *from,
				    struct lfs_toc_xattrs *found);

#define LFS_RECORD_SIZE 80 /* of a layer table */

/* What the header of a layer table says of its records. */
struct lfs_toc_extent {
	uint64_t end, payload_size;
	bool in_blob_order;
};

/* lfs_toc_table() writes the records of the layer table, 80 bytes for each
 * chunk; 'payload_end' is the blob offset where payloads end. */
enum lfs_result lfs_toc_table(const struct lfs_toc *toc, uint64_t payload_end,
			      uint8_t *records, struct lfs_toc_extent *extent);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_TOC_H */
