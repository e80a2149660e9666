/* SPDX-License-Identifier: Apache-2.0 */
/* What a server is made of: its threads, its layers, and who waits. */
#ifndef LAZYFS_SERVER_STATE_H
#define LAZYFS_SERVER_STATE_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse_abi.h"
#include "lazyfs_index.h"
#include "lazyfs_server.h"
#include "lazyfs_tables.h"

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
	bool is_direct; /* past the kernel's cache: it has no pages */
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

static inline void lfs_count(_Atomic uint64_t *counter, uint64_t more)
{
	/* Only one thread writes to a counter */
	uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, value + more, memory_order_relaxed);
}

/* lfs_nid_of() returns the nid that the kernel's 'node' means. */
static inline uint64_t lfs_nid_of(const struct lfs_server *server,
				  uint64_t node)
{
	return node == FUSE_ROOT_ID ? server->index.root_nid : node;
}

#endif /* LAZYFS_SERVER_STATE_H */
