/* SPDX-License-Identifier: Apache-2.0 */
/* The server: it answers the kernel's FUSE requests. */
#ifndef LAZYFS_SERVER_H
#define LAZYFS_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lazyfs_index.h"
#include "lazyfs_result.h"
#include "lazyfs_tables.h"

#ifdef __cplusplus
extern "C" {
#endif

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

/*
 * Having the kernel forget pages of the file 'node'.  lfs_forget() waits for
 * pages that are being read, and nothing interrupts that; it needs no server,
 * which may be destroyed meanwhile, and returns 0 or an errno (ENOENT: the kernel
 * has nothing of the file).
 *
 * lfs_server_held() finds the first pages between 'offset' and 'end' that a read
 * has which waits for the owner; false: there are none.  Reads past the kernel's
 * cache have no pages.  What it says is true until the next request; lfs_settle()
 * waits some milliseconds at most for those that are on their way.
 */
bool lfs_server_held(struct lfs_server *server, uint64_t node, uint64_t offset,
		     uint64_t end, uint64_t *start_ret, uint64_t *end_ret);
void lfs_settle(int device_fd);
int lfs_forget(int device_fd, uint64_t node, uint64_t offset, uint64_t size);

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

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_SERVER_H */
