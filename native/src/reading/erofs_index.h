/* SPDX-License-Identifier: Apache-2.0 */
/* What the readers of the index share. */
#ifndef LAZYFS_EROFS_INDEX_H
#define LAZYFS_EROFS_INDEX_H

#include "lazyfs_index.h"

/* lfs_xattrs_end() returns where an inode and its attributes end; that may be
 * behind the end of the index. */
size_t lfs_xattrs_end(const struct lfs_inode *inode);

#endif /* LAZYFS_EROFS_INDEX_H */
