/* SPDX-License-Identifier: Apache-2.0 */
/* One layer's tree. */
#ifndef LAZYFS_TOC_TREE_H
#define LAZYFS_TOC_TREE_H

#include "lazyfs_result.h"
#include "lazyfs_toc.h"
#include "toc.h"

/* toc_plant() sorts the entries and makes the tree of them. */
enum lfs_result toc_plant(struct lfs_toc *toc,
			  const struct lfs_toc_limits *limits);

#endif /* LAZYFS_TOC_TREE_H */
