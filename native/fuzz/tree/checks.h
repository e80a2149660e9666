/* SPDX-License-Identifier: Apache-2.0 */
/* What the core's reader finds, compared with what was meant. */
#ifndef LAZYFS_FUZZ_CHECKS_H
#define LAZYFS_FUZZ_CHECKS_H

#include "layers.h"
#include "lazyfs_toc.h"

/* Every byte of a file is in a record of the layer's table, and nothing else. */
void check_table(const struct lfs_toc *toc, const struct made_layer *layer);

/* check_written() merges and writes the layers, and reads all of it back. */
void check_written(const struct made_layers *made, struct lfs_toc *const *tocs);

#endif /* LAZYFS_FUZZ_CHECKS_H */
