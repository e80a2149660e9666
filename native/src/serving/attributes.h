/* SPDX-License-Identifier: Apache-2.0 */
/* Requests for extended attributes. */
#ifndef LAZYFS_ATTRIBUTES_H
#define LAZYFS_ATTRIBUTES_H

#include "server_state.h"

void lfs_getxattr(struct lfs_worker *, const struct lfs_request *);
void lfs_listxattr(struct lfs_worker *, const struct lfs_request *);

#endif /* LAZYFS_ATTRIBUTES_H */
