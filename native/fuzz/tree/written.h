/* SPDX-License-Identifier: Apache-2.0 */
/* Layers as the core writes them. */
#ifndef LAZYFS_FUZZ_WRITTEN_H
#define LAZYFS_FUZZ_WRITTEN_H

#include <stddef.h>
#include <stdint.h>

#include "layers.h"
#include "lazyfs_toc.h"

struct written {
	uint8_t *image, *provenance;
	size_t image_size, provenance_size;
	uint64_t inode_count;
};

/* write_all() merges and writes what was scanned of the layers; the buffers are
 * the caller's. */
void write_all(const struct made_layers *made, struct lfs_toc *const *tocs,
	       struct written *out);

#endif /* LAZYFS_FUZZ_WRITTEN_H */
