/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the server share.
 *
 *   server.c      making, starting, stopping; the loop of a thread
 *   requests.c    which request goes where; INIT
 *   metadata.c    names, attributes, directories, links
 *   attributes.c  extended attributes
 *   contents.c    reads: hits, first touches, marks
 *   waiting.c     requests that wait for the owner, and its events
 *   reply.c       what is written to the kernel
 *   placement.c   on which processor a thread runs
 */
#ifndef LAZYFS_SERVER_H
#define LAZYFS_SERVER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "fuse_abi.h"
#include "lazyfs_core.h"

#define LFS_RESIDENT 2
#define LFS_IN_SIZE (128u << 10)
#define LFS_OUT_SIZE LFS_MAX_READ
#define LFS_FOREVER 1000000000u /* seconds that an answer holds */
#define LFS_BLOCK_SIZE 4096u
#define LFS_RING_SIZE 256u

/* One request; 'body' is what follows the header. */
struct lfs_request {
	struct fuse_in_header header;
	const uint8_t *body;
	size_t body_size;
};

/* Counters of one thread; others only read them. */
struct lfs_counters {
	_Atomic uint64_t requests;
	_Atomic uint64_t reads;
	_Atomic uint64_t misses;
	_Atomic uint64_t read_size;
	_Atomic uint64_t interrupted;
	_Atomic uint64_t refused;
	_Atomic uint64_t faults;
};

/* Where a thread runs, and for whom. */
struct lfs_placement {
	cpu_set_t anywhere;
	uint32_t pid; /* of the last task that was answered */
	uint32_t streak;
	int processor;
	bool is_possible;
	bool is_bound;
};

/* One thread, and the descriptor that it reads from. */
struct lfs_worker {
	struct lfs_server *server;
	uint8_t *in;
	uint8_t *out;
	int fd;
	bool owns_fd;
	unsigned number;
	pthread_t thread;
	bool is_joinable;
	atomic_bool has_ended;
	uint64_t last_interrupted; /* unique that nobody waited for */
	bool was_large;		   /* the last request was a read of much */
	struct lfs_counters counters;
	struct lfs_placement placement;
};

/* A layer, with what reading it leaves behind. */
struct lfs_device {
	struct lfs_layer layer;
	_Atomic uint8_t *seen;
	_Atomic uint32_t mark;
	atomic_bool ignores_holes;
};

struct lfs_own_attribute {
	char *name;
	size_t name_size;
	uint8_t *value; /* NULL: the owner is asked */
	size_t value_size;
};

/* A request that waits.  id = generation << 32 | number of the slot. */
struct lfs_waiting {
	uint64_t unique;
	uint64_t node;
	uint64_t offset;
	uint64_t device_offset;
	uint32_t size;
	uint32_t number; /* of the device, or of the attribute */
	uint32_t generation;
	uint32_t next; /* in the queue, or of the free slots */
	uint16_t worker;
	uint8_t kind;	/* 0: the slot is free */
	bool is_lost;	/* the bytes are marked, and not in the file */
	bool is_queued; /* the owner has not taken it yet */
};

#define LFS_NO_SLOT UINT32_MAX

struct lfs_server {
	struct lfs_index index;
	struct lfs_provenance provenance;
	struct lfs_device *devices;
	uint32_t device_count;
	struct lfs_own_attribute *attributes;
	size_t attribute_count;
	struct lfs_options options;

	struct lfs_worker workers[LFS_MAX_THREADS];
	atomic_uint running;
	atomic_bool is_stopping;
	atomic_uint protocol_minor;
	_Atomic uint64_t init_flags;
	int device_fd;
	int event_fd;
	bool is_started;

	/* Guards all below */
	pthread_mutex_t lock;
	struct lfs_waiting *slots;
	uint32_t used_slots; /* those behind were never used */
	uint32_t free_slot;
	uint32_t first_queued;
	uint32_t last_queued;
	uint32_t waiting;
	struct lfs_event ring[LFS_RING_SIZE]; /* hints and faults */
	uint32_t ring_start;
	uint32_t ring_count;

	/* Log of first touches; only ever grows */
	struct lfs_touch *touches;
	_Atomic uint32_t touch_count; /* places given out */

	/* Guards 'answer', where answers given by the owner are put together */
	pthread_mutex_t answer_lock;
	uint8_t *answer;
};

/* server.c */

static inline void lfs_count(_Atomic uint64_t *counter, uint64_t more)
{
	/* Only one thread writes to a counter */
	uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, value + more, memory_order_relaxed);
}

/* lfs_server_wake() makes the eventfd readable. */
void lfs_server_wake(struct lfs_server *server);

/* requests.c: returns false when the connection is over. */
bool lfs_dispatch(struct lfs_worker *worker, const uint8_t *in, size_t size);

/* reply.c: all write to the worker's descriptor; a reader that has gone away is
 * no error. */
void lfs_reply(const struct lfs_worker *worker, uint64_t unique,
	       const void *data, size_t size);
void lfs_reply_error(const struct lfs_worker *worker, uint64_t unique,
		     int error);
/* A name or value: 'wanted' is the room that the caller of getxattr has; 0 asks
 * for the size only. */
void lfs_reply_xattr(const struct lfs_worker *worker, uint64_t unique,
		     const void *data, size_t size, uint32_t wanted);

/* The request failed because of what is on disk: EIO, and the owner is told. */
void lfs_fault(struct lfs_worker *worker, const struct lfs_request *request);

/* placement.c, both for the calling thread's own worker */
void lfs_place(struct lfs_worker *worker);
/* A request of task 'pid' has been answered; 0: of nobody to be followed. */
void lfs_follow(struct lfs_worker *worker, uint32_t pid);

/* metadata.c */
uint64_t lfs_nid_of(const struct lfs_server *server, uint64_t node);
void lfs_lookup(struct lfs_worker *, const struct lfs_request *);
void lfs_getattr(struct lfs_worker *, const struct lfs_request *);
void lfs_readlink(struct lfs_worker *, const struct lfs_request *);
void lfs_readdir(struct lfs_worker *, const struct lfs_request *);
void lfs_statfs(struct lfs_worker *, const struct lfs_request *);

/* attributes.c */
void lfs_getxattr(struct lfs_worker *, const struct lfs_request *);
void lfs_listxattr(struct lfs_worker *, const struct lfs_request *);

/* contents.c */
void lfs_read(struct lfs_worker *, const struct lfs_request *);
/* Are all records that hold these bytes resident?  LFS_ABSENT: no. */
enum lfs_result lfs_is_resident(const struct lfs_server *server,
				const struct lfs_device *device,
				uint64_t offset, uint64_t size);
/* Read bytes that are resident; false: the content file lacks them. */
bool lfs_read_content(const struct lfs_device *device, uint8_t *out,
		      uint64_t offset, size_t size);
/* The same; false, too, where a hole of the file has taken their place. */
bool lfs_read_whole(const struct lfs_device *device, uint8_t *out,
		    uint64_t offset, size_t size);
/* Make zeros of what 'out' has from places that no record holds. */
void lfs_clear_gaps(const struct lfs_device *device, uint8_t *out,
		    uint64_t offset, size_t size);
/* Find the records that a read needs; LFS_CORRUPT: bytes that cannot be verified. */
enum lfs_result lfs_records_for(const struct lfs_server *server,
				const struct lfs_device *device, uint64_t start,
				uint64_t end, uint64_t *first, uint64_t *last);

/* waiting.c */
int lfs_waiting_create(struct lfs_server *server);
void lfs_waiting_destroy(struct lfs_server *server);
/* Put a request on the table; false: it is full.  'is_lost': the content file
 * does not have what is marked. */
bool lfs_wait_for_bytes(struct lfs_worker *worker, uint64_t unique,
			uint64_t node, uint64_t offset, uint32_t device,
			uint64_t device_offset, uint32_t size, bool is_lost);
bool lfs_wait_for_attribute(struct lfs_worker *worker, uint64_t unique,
			    uint32_t number, uint32_t wanted);
/* Tell the owner something that needs no answer; dropped when it is not
 * listening. */
void lfs_tell(struct lfs_server *server, const struct lfs_event *event);
/* Answer EINTR to the waiting request 'unique'; false: none waits. */
bool lfs_interrupt(struct lfs_server *server, uint64_t unique);

#endif /* LAZYFS_SERVER_H */
