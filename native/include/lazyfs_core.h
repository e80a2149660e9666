/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lazyfs_core - serve a lazily fetched image to the kernel.
 *
 * The first half of this header reads what lazyfs keeps of an image on disk:
 * the rootfs index (an EROFS image), the layer tables and the provenance table.
 * The second half answers the kernel's FUSE requests from them.  There is no
 * Python in here; whatever is not resident is asked for through a queue.
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

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum lfs_result {
	LFS_OK = 0,
	LFS_ABSENT,	/* no such name, record, attribute or request */
	LFS_CORRUPT,	/* the bytes contradict themselves, or end too early */
	LFS_WRONG_KIND, /* this kind of inode has nothing of that kind */
	LFS_UNUSUAL,	/* right or wrong: for the Python twin to say */
};

/* ------------------------------------------------------------------------ */
/* The rootfs index                                                          */
/* ------------------------------------------------------------------------ */

/* An opened index.  The fields are for the functions below. */
struct lfs_index {
	const uint8_t *bytes;
	size_t size;
	uint64_t metadata; /* where inode 0 would lie */
	uint64_t root_nid;
	uint64_t inode_count;
	uint32_t block_bits;
	uint32_t device_count;
	size_t devices; /* where the device table lies */
};

/* One inode; 'place', 'format', 'xattr_words' and 'data' are the format's own.
 */
struct lfs_inode {
	uint64_t nid;
	uint64_t size; /* in bytes */
	int64_t mtime; /* in seconds; may be negative */
	uint32_t mtime_nanoseconds;
	uint32_t mode; /* with the file type, as in stat */
	uint32_t uid;
	uint32_t gid;
	uint32_t nlink;
	uint32_t rdev; /* 0 unless it is a device; minor's low 8 bits, then
			  12 bits of major, then the rest of minor */
	size_t place;
	uint16_t format;
	uint16_t xattr_words;
	uint32_t data;
};

/* Where the bytes of a regular file lie; device 1 is the bottom layer. */
struct lfs_extent {
	uint32_t device; /* 0 when the file is empty */
	uint64_t offset;
	uint64_t size;
};

/*
 * lfs_index_open() checks the superblock in 'bytes' and fills in '*index'.
 * LFS_CORRUPT: not a rootfs index.
 */
enum lfs_result lfs_index_open(struct lfs_index *index, const uint8_t *bytes,
			       size_t size);

/* lfs_index_device_size() returns the size of device 1 ... device_count in
 * bytes, and 0 for any other number. */
uint64_t lfs_index_device_size(const struct lfs_index *index, uint32_t device);

/* lfs_index_inode() reads inode 'nid'.  LFS_CORRUPT: there is none. */
enum lfs_result lfs_index_inode(const struct lfs_index *index, uint64_t nid,
				struct lfs_inode *inode);

/*
 * lfs_index_lookup() finds a name in a directory, by bisection.  LFS_ABSENT: no
 * such name.  LFS_WRONG_KIND: not a directory.  "." and ".." are found too.
 */
enum lfs_result lfs_index_lookup(const struct lfs_index *index,
				 const struct lfs_inode *directory,
				 const uint8_t *name, size_t name_size,
				 uint64_t *nid);

/* One name of a directory. */
struct lfs_entry {
	const uint8_t *name; /* points into the index; not terminated */
	size_t name_size;    /* never 0 */
	uint64_t nid;
	uint64_t next_offset; /* where to go on behind this entry */
	uint8_t kind;	      /* EROFS' number of the file type */
};

/* A walk through a directory.  The fields are for lfs_entries_next(). */
struct lfs_entries {
	const struct lfs_index *index;
	const struct lfs_inode *directory;
	uint64_t block;
	uint64_t number; /* of the next entry in the block */
	size_t start;	 /* of the block in the index */
	size_t size;	 /* of the block */
	uint64_t count;	 /* of entries in the block; 0: not looked at yet */
};

/*
 * lfs_entries_open() begins a walk at 'offset', which is 0 or the next_offset
 * of an entry; any other number leads somewhere, or to the end.  Both arguments
 * must outlive the walk.  LFS_WRONG_KIND: not a directory.
 */
enum lfs_result lfs_entries_open(struct lfs_entries *entries,
				 const struct lfs_index *index,
				 const struct lfs_inode *directory,
				 uint64_t offset);

/*
 * lfs_entries_next() goes to the next entry, in the order of the names' bytes;
 * "." and ".." are among them.  LFS_ABSENT: there is no further one.
 */
enum lfs_result lfs_entries_next(struct lfs_entries *entries,
				 struct lfs_entry *entry);

/*
 * lfs_index_readlink() finds the target of a symlink; it points into the index
 * and is not terminated.  LFS_WRONG_KIND: not a symlink.
 */
enum lfs_result lfs_index_readlink(const struct lfs_index *index,
				   const struct lfs_inode *inode,
				   const uint8_t **target, size_t *target_size);

/*
 * lfs_index_extent() says where the bytes of a regular file lie; device, offset
 * and size are inside of the device.  LFS_WRONG_KIND: not a regular file.
 */
enum lfs_result lfs_index_extent(const struct lfs_index *index,
				 const struct lfs_inode *inode,
				 struct lfs_extent *extent);

/* One extended attribute; its name is 'prefix' and then 'rest'. */
struct lfs_xattr {
	const char *prefix; /* terminated */
	size_t prefix_size;
	const uint8_t *rest; /* points into the index, like 'value' */
	size_t rest_size;
	const uint8_t *value;
	size_t value_size;
};

/* A walk through an inode's attributes; set it up with lfs_xattrs_open(). */
struct lfs_xattrs {
	const struct lfs_index *index;
	size_t position;
	size_t end;
};

/* lfs_xattrs_open() begins a walk; the index must outlive it. */
enum lfs_result lfs_xattrs_open(struct lfs_xattrs *xattrs,
				const struct lfs_index *index,
				const struct lfs_inode *inode);

/* lfs_xattrs_next() goes to the next one.  LFS_ABSENT: no further one. */
enum lfs_result lfs_xattrs_next(struct lfs_xattrs *xattrs,
				struct lfs_xattr *xattr);

/* lfs_xattr_is() says whether an attribute has the name 'name'. */
bool lfs_xattr_is(const struct lfs_xattr *xattr, const char *name,
		  size_t name_size);

/* ------------------------------------------------------------------------ */
/* The layer table                                                           */
/* ------------------------------------------------------------------------ */

/* An opened table.  Records count from 0, in the order of device offsets. */
struct lfs_table {
	const uint8_t *records;
	uint64_t count;
	uint64_t device_size;
};

/* lfs_table_open() checks header and size.  LFS_CORRUPT: not a layer table. */
enum lfs_result lfs_table_open(struct lfs_table *table, const uint8_t *bytes,
			       size_t size);

/*
 * lfs_table_covering() finds the records that hold the device bytes 'start' to
 * 'end' (start < end): '*first' up to, not including, '*last'.  LFS_CORRUPT:
 * not every one of these bytes is in a record, so none of them can be verified.
 */
enum lfs_result lfs_table_covering(const struct lfs_table *table,
				   uint64_t start, uint64_t end,
				   uint64_t *first, uint64_t *last);

/*
 * lfs_table_overlapping() finds the records that hold any of the device bytes
 * 'start' to 'end': '*first' up to, not including, '*last'; maybe none.
 */
void lfs_table_overlapping(const struct lfs_table *table, uint64_t start,
			   uint64_t end, uint64_t *first, uint64_t *last);

/* lfs_table_record() says which device bytes record 'record' holds. */
void lfs_table_record(const struct lfs_table *table, uint64_t record,
		      uint64_t *start, uint64_t *end);

/* lfs_table_is_hole() says whether a record is zeros that are written nowhere. */
bool lfs_table_is_hole(const struct lfs_table *table, uint64_t record);

/* ------------------------------------------------------------------------ */
/* Maps of files that may become shorter                                     */
/* ------------------------------------------------------------------------ */

/*
 * lfs_guard() sees to it that pages of the map at 'start' which its file cannot
 * give any more (it was cut, or the disk fails) become zeros for this process,
 * instead of its end by SIGBUS.  Returns 0 or an errno.  lfs_unguard() is for
 * before the map goes away.  Both may be called by any thread.
 */
int lfs_guard(const void *start, size_t size);
void lfs_unguard(const void *start);

/* ------------------------------------------------------------------------ */
/* Windows of restart points                                                 */
/* ------------------------------------------------------------------------ */

/*
 * lfs_window_keep() copies those bytes of 'window' to 'kept' that some place
 * names, and zeros for the others; both have 'size' bytes.  Place i is low[i]
 * and high[i], its halves, for i below 'count'; one beyond the window names
 * nothing.
 */
void lfs_window_keep(uint8_t *kept, const uint8_t *window, size_t size,
		     const uint8_t *low, const uint8_t *high, size_t count);

/* ------------------------------------------------------------------------ */
/* The provenance table                                                      */
/* ------------------------------------------------------------------------ */

struct lfs_provenance {
	const uint8_t *records;
	uint64_t count;
};

/* Which layer an inode comes from (0 is the bottom one), and the sha256 of the
 * file, NULL if its producer did not say; 32 bytes that point into the table.
 */
struct lfs_origin {
	uint32_t layer;
	const uint8_t *digest;
};

enum lfs_result lfs_provenance_open(struct lfs_provenance *provenance,
				    const uint8_t *bytes, size_t size);

/* lfs_provenance_of() finds the origin of an inode.  LFS_ABSENT: no layer has
 * an entry for it. */
enum lfs_result lfs_provenance_of(const struct lfs_provenance *provenance,
				  uint64_t nid, struct lfs_origin *origin);

/* ------------------------------------------------------------------------ */
/* The server                                                                */
/* ------------------------------------------------------------------------ */

/*
 * A server answers the requests of one FUSE connection from INIT on, in threads
 * of its own.  What is resident is answered there and then.  What is not waits
 * in a table until its owner, who learns of it by lfs_server_take(), gives the
 * answer; any number of requests may wait, and none of them delays another.
 *
 * Memory is allocated when a server is made, not per request.
 *
 * Inode numbers are nids, except for the root, which is 1.  No handles are
 * given out (open and opendir are refused with ENOSYS, which makes the kernel
 * do without, and keep what it has read), so there is no state to lose.
 */
struct lfs_server;

/* A layer of the image that is served: device number = place in the list + 1.
 * 'states' is the presence map, one byte for each record of the table, written
 * by others meanwhile; 2 means that the record's bytes are in 'content_fd', and
 * nothing else does. */
struct lfs_layer {
	struct lfs_table table;
	const uint8_t *states;
	size_t states_size;
	int content_fd;	     /* or -1: nothing is ever resident */
	const char *digest;  /* what user.lazyfs.file.layer says */
	const char *diff_id; /* what user.lazyfs.file.diffid says */
};

/* A name that the mount adds to the attributes of its root.  With a NULL value
 * the owner is asked each time. */
struct lfs_attribute {
	const char *name;
	const uint8_t *value;
	size_t value_size;
};

struct lfs_image {
	struct lfs_index index;
	struct lfs_provenance provenance;
	const struct lfs_layer *layers; /* as many as the index has devices */
	const struct lfs_attribute *attributes;
	size_t attribute_count;
};

struct lfs_options {
	unsigned threads;     /* 1 to LFS_MAX_THREADS */
	uint32_t max_waiting; /* requests that may wait at once; a further one
				 gets EIO.  Costs 64 bytes each when used. */
	uint32_t max_touches; /* length of the log of first touches */
	uint32_t max_read;    /* largest read in bytes, up to LFS_MAX_READ */
	bool share_device;    /* do not clone the connection for each thread */
	bool stays; /* do not move threads to their reader's processor */
	/* The files are whole devices, for a filesystem of the kernel's: they are
	 * opened, past the kernel's cache; bytes between the records are zeros;
	 * and reads are not interrupted, since whoever reads a device for somebody
	 * would hand on the error. */
	bool serves_devices;
	/* Clones of the connection, for the second thread and the following ones;
	 * they stay the caller's.  A thread that gets none makes its own. */
	const int *clones;
	uint32_t clone_count;
	uint32_t adopted_minor; /* the kernel was greeted by another server: the
				   protocol_minor of its statistics; else 0 */
};

#define LFS_MAX_THREADS 16
#define LFS_MAX_READ (1u << 20)

/* What the owner is told. */
enum lfs_event_kind {
	LFS_EVENT_MISS = 1,  /* bytes are missing: answer 'id'.  'number' is 1
				where they are marked, and the content file does
				not have them */
	LFS_EVENT_ATTRIBUTE, /* value of attribute 'number' wanted: answer 'id'
			      */
	LFS_EVENT_HINT,	     /* chunk 'number' of 'device' was read: see
				lfs_server_mark(); no answer */
	LFS_EVENT_FAULT, /* a request failed for what is on disk: 'number' is
			    its FUSE opcode; no answer */
};

struct lfs_event {
	uint32_t kind;
	uint32_t device;
	uint64_t id;
	uint64_t node;	 /* nid */
	uint64_t offset; /* in the file */
	uint64_t device_offset;
	uint32_t size;
	uint32_t number;
};

/* First touches of chunks, in their order. */
struct lfs_touch {
	uint32_t device;
	uint32_t chunk;
};

struct lfs_statistics {
	uint64_t requests;  /* of any kind */
	uint64_t reads;	    /* READ requests */
	uint64_t misses;    /* READ requests that had to wait */
	uint64_t read_size; /* bytes answered from content files */
	uint64_t interrupted;
	uint64_t refused;	 /* misses beyond max_waiting */
	uint64_t faults;	 /* requests that failed for what is on disk */
	uint32_t waiting;	 /* requests that wait now */
	uint32_t threads;	 /* threads that serve now */
	uint32_t protocol_minor; /* of the kernel; 0 before INIT */
	uint64_t init_flags;	 /* what INIT agreed on; 0 when adopted */
};

/*
 * lfs_server_create() makes a server of 'image' on the connection 'device_fd'.
 * It returns 0 or an errno (EINVAL: the image does not fit together).  The
 * lists in 'image' and their strings are copied; the mapped buffers,
 * 'device_fd' and the content files stay the caller's and must outlive the
 * server.
 */
int lfs_server_create(struct lfs_server **server, int device_fd,
		      const struct lfs_image *image,
		      const struct lfs_options *options);

/* lfs_server_start() starts the threads, once; returns 0 or an errno. */
int lfs_server_start(struct lfs_server *server);

/* lfs_server_ignore_holes() is for a device whose filesystem makes holes of
 * zeros that are written: a hole there does not say that bytes are lost. */
void lfs_server_ignore_holes(struct lfs_server *server, uint32_t device);

/* lfs_server_event_fd() returns an eventfd that is readable when there is
 * something to take, when the kernel has greeted us, and when the connection is
 * gone.  It stays the server's. */
int lfs_server_event_fd(const struct lfs_server *server);

/* Has the kernel's greeting been answered?  Have all threads ended? */
bool lfs_server_is_ready(const struct lfs_server *server);
bool lfs_server_is_gone(const struct lfs_server *server);

/* lfs_server_take() moves up to 'max' events into 'events' and returns their
 * number.  Never blocks.  The eventfd stays readable while more are left. */
size_t lfs_server_take(struct lfs_server *server, struct lfs_event *events,
		       size_t max);

/*
 * Answers to a MISS or ATTRIBUTE event; the reply goes out on the descriptor
 * that read the request.  Any thread may answer.  LFS_ABSENT: nobody waits for
 * 'id' any more, because the reader was interrupted.
 *
 * lfs_server_answer() answers a miss from the content file; LFS_CORRUPT: the
 * range is not resident, or the file does not give it, and the request waits on.
 * lfs_server_answer_bytes() answers a miss with all of its bytes; LFS_CORRUPT:
 * 'size' is not the size asked for, and the request waits on.
 * lfs_server_answer_attribute() gives the value of an attribute.
 * lfs_server_answer_error() makes the request fail with 'error', an errno.
 */
enum lfs_result lfs_server_answer(struct lfs_server *server, uint64_t id);
/* Does somebody still wait for 'id'? */
bool lfs_server_waits(struct lfs_server *server, uint64_t id);
enum lfs_result lfs_server_answer_bytes(struct lfs_server *server, uint64_t id,
					const uint8_t *bytes, size_t size);
enum lfs_result lfs_server_answer_attribute(struct lfs_server *server,
					    uint64_t id, const uint8_t *value,
					    size_t size);
enum lfs_result lfs_server_answer_error(struct lfs_server *server, uint64_t id,
					int error);

/* lfs_server_mark() asks for one HINT event when 'chunk' of 'device' is next
 * read from the content file; it replaces the device's mark.  LFS_NO_MARK:
 * none. */
#define LFS_NO_MARK UINT32_MAX
void lfs_server_mark(struct lfs_server *server, uint32_t device,
		     uint32_t chunk);

/* lfs_server_touches() copies first touches from number 'start' on, and returns
 * how many there were to copy, at most 'max'. */
size_t lfs_server_touches(struct lfs_server *server, size_t start,
			  struct lfs_touch *touches, size_t max);

void lfs_server_statistics(struct lfs_server *server,
			   struct lfs_statistics *statistics);

/* lfs_server_stop() makes the threads end, whether or not the mount is gone,
 * and waits for that.  May be called again.  Uses LFS_STOP_SIGNAL on its
 * threads. */
void lfs_server_stop(struct lfs_server *server);
#define LFS_STOP_SIGNAL (SIGRTMIN + 5)

/* lfs_server_destroy() stops the server, closes its clones of the connection
 * and frees everything.  Requests that still wait end when 'device_fd' is
 * closed. */
void lfs_server_destroy(struct lfs_server *server);

/* ------------------------------------------------------------------------ */
/* From tables of contents to the rootfs index                               */
/* ------------------------------------------------------------------------ */

/*
 * What lazyfs/formats and lazyfs/rootfs do in Python, for what is usual: the
 * results are the same to the byte.  Whatever is rare, wrong or too large is
 * LFS_UNUSUAL, as is a lack of memory, and then the Python twin does the work
 * and says what is wrong.  These functions allocate, in proportion to what they
 * are given; no two threads may use one object at once.
 */

struct lfs_toc;	 /* one layer's table of contents */
struct lfs_tree; /* the layers of an image, merged */

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

/* lfs_tree_merge() lays 'count' layers over each other, bottom first; they must
 * stay while the tree does. */
enum lfs_result lfs_tree_merge(struct lfs_tree **tree,
			       struct lfs_toc *const *tocs, size_t count);
void lfs_tree_free(struct lfs_tree *tree);

/* An inode that has extended attributes: where the entry is that says so. */
struct lfs_tree_place {
	uint32_t layer, entry;
};

/* The body of an inode's extended attributes. */
struct lfs_body {
	const uint8_t *bytes;
	size_t size;
};

/* lfs_tree_xattrs() writes at most 'max' places in the order of the inodes, and
 * returns how many there are. */
size_t lfs_tree_xattrs(const struct lfs_tree *tree,
		       struct lfs_tree_place *places, size_t max);

/* lfs_tree_number() gives every inode its place in an image whose inodes begin
 * at byte 'start'.  'bodies' are as many as lfs_tree_xattrs() has places;
 * 'root' is the root's, and takes the place of its own, unless it is NULL. */
enum lfs_result lfs_tree_number(struct lfs_tree *tree, uint64_t start,
				const struct lfs_body *bodies, size_t count,
				const struct lfs_body *root);

/* After lfs_tree_number(): sizes in bytes, of the image and of the records of
 * the provenance table. */
void lfs_tree_sizes(const struct lfs_tree *tree, uint64_t *inode_count,
		    uint64_t *image_size, uint64_t *provenance_size);

/* After lfs_tree_number(): the nid of the root, which lies behind 'start' where
 * its names would have crossed a block's end. */
uint64_t lfs_tree_root(const struct lfs_tree *tree);

/* lfs_tree_write() writes both; all bytes of the image must be zero before, and
 * the bodies still be there.  Superblock and devices are left out. */
enum lfs_result lfs_tree_write(const struct lfs_tree *tree, uint8_t *image,
			       uint8_t *provenance);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_CORE_H */
