/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EROFS on disk, as far as the rootfs index uses it.  Source: the kernel's
 * header of the format (fs/erofs/erofs_fs.h).  All numbers are little-endian.
 *
 * An index holds extended inodes, flat directories and symlinks, and regular
 * files of one chunk each, whose bytes lie in extra devices.
 */
#ifndef LAZYFS_EROFS_FORMAT_H
#define LAZYFS_EROFS_FORMAT_H

#define EROFS_SUPERBLOCK 1024u
#define EROFS_SUPERBLOCK_SIZE 128u
#define EROFS_MAGIC 0xE0F5E1E2u
#define EROFS_CHUNKED_FILE 0x4u
#define EROFS_DEVICE_TABLE 0x8u
#define EROFS_MIN_BLOCK_BITS 9u
#define EROFS_MAX_BLOCK_BITS 12u
#define EROFS_DEVICE_SLOT_SIZE 128u
#define EROFS_DEVICE_BLOCKS 64u /* in a slot, behind the tag */

#define EROFS_SLOT_SIZE 32u
#define EROFS_INODE_SIZE 64u
#define EROFS_FORMAT_PLAIN 1u /* extended, then the layout from bit 1 on */
#define EROFS_FORMAT_INLINE 5u
#define EROFS_FORMAT_CHUNKED 9u

#define EROFS_CHUNK_BITS 0x1Fu
#define EROFS_CHUNK_INDEXES 0x20u
#define EROFS_CHUNK_INDEX_SIZE 8u

#define EROFS_DIRENT_SIZE 12u
#define EROFS_DIRENT_NAME 8u
#define EROFS_DIRENT_KIND 10u
#define EROFS_MAX_SYMLINK 4095u

#define EROFS_XATTR_HEADER_SIZE 12u
#define EROFS_XATTR_SHARED 4u
#define EROFS_XATTR_ENTRY_SIZE 4u

#endif /* LAZYFS_EROFS_FORMAT_H */
