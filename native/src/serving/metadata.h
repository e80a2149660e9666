/* SPDX-License-Identifier: Apache-2.0 */
/* Requests for names, attributes, directories and links. */
#ifndef LAZYFS_METADATA_H
#define LAZYFS_METADATA_H

#include "server_state.h"

void lfs_lookup(struct lfs_worker *, const struct lfs_request *);
void lfs_getattr(struct lfs_worker *, const struct lfs_request *);
void lfs_readlink(struct lfs_worker *, const struct lfs_request *);
void lfs_readdir(struct lfs_worker *, const struct lfs_request *);
void lfs_statfs(struct lfs_worker *, const struct lfs_request *);

#endif /* LAZYFS_METADATA_H */
