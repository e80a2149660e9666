/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lazyfs_core - serve a lazily fetched image to the kernel.
 *
 * There is no Python in here.  lazyfs_index.h and lazyfs_tables.h read what
 * lazyfs keeps of an image on disk: the rootfs index (an EROFS image), the layer
 * tables and the provenance table.  lazyfs_server.h answers the kernel's FUSE
 * requests from them; whatever is not resident is asked for through a queue.
 * lazyfs_toc.h and lazyfs_tree.h write the index.  Headers include what they
 * need; this one is for who needs them all.
 *
 * Common rules, unless a function says otherwise:
 *
 *  - Buffers belong to the caller, come with their sizes, are never written to,
 *    and must stay where they are while something refers to them.  They may
 * hold any bytes: a cache directory can rot.  Nothing outside of a buffer is
 * ever read, and every loop is bounded by a buffer's size.
 *  - Readers keep no state and may be used by any number of threads at once.
 *  - Readers do not allocate, do no I/O and do not set errno.
 *  - What a result points to is undefined unless LFS_OK was returned.
 *  - Digests and checksums are not computed here: whoever maps a file has
 *    compared its digest.
 */
#ifndef LAZYFS_CORE_H
#define LAZYFS_CORE_H

#include "lazyfs_guard.h"
#include "lazyfs_index.h"
#include "lazyfs_result.h"
#include "lazyfs_server.h"
#include "lazyfs_tables.h"
#include "lazyfs_toc.h"
#include "lazyfs_tree.h"
#include "lazyfs_window.h"

#endif /* LAZYFS_CORE_H */
