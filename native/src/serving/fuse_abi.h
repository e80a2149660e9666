/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's FUSE protocol: the system's header, and what newer kernels say.
 * Source: include/uapi/linux/fuse.h, versions 7.36 to 7.40.
 */
#ifndef LAZYFS_FUSE_ABI_H
#define LAZYFS_FUSE_ABI_H

#include <linux/fuse.h>

#define LFS_FUSE_MINOR 40
#define LFS_FUSE_OLDEST_MINOR 28 /* 7.28: max_pages, cached symlinks */

#define LFS_FUSE_STATX 52 /* 7.39 */
#define LFS_FUSE_OPCODES 64

/* Bits of INIT's flags, the upper half in flags2. */
#define LFS_INIT_EXT ((uint64_t)1 << 30)   /* 7.36 */
#define LFS_HAS_RESEND ((uint64_t)1 << 39) /* 7.40 */

#endif /* LAZYFS_FUSE_ABI_H */
