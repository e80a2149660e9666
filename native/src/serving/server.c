/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making, starting and stopping a server; the loop of its threads.
 *
 * Each thread has a clone of the connection where that can be had (it needs
 * permission to open /dev/fuse), and shares the given descriptor otherwise.  A
 * clone has its own list of requests under way, so a reply must go to the
 * descriptor that read the request.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "events.h"
#include "fuse_abi.h"
#include "lazyfs_server.h"
#include "placement.h"
#include "requests.h"
#include "server_state.h"
#include "waiting.h"

#define FUSE_DEVICE "/dev/fuse"
#define STOP_RETRY_NANOSECONDS 5000000

static char *copy_text(const char *text)
{
	return strdup(text ? text : "");
}

static int copy_layers(struct lfs_server *server, const struct lfs_image *image)
{
	struct lfs_device *device;
	uint32_t i;

	server->device_count = image->index.device_count;
	server->devices =
		calloc(server->device_count + 1, sizeof(*server->devices));
	if (!server->devices)
		return ENOMEM;
	for (i = 0; i < server->device_count; i++) {
		device = &server->devices[i];
		device->layer = image->layers[i];
		device->layer.digest = copy_text(image->layers[i].digest);
		device->layer.diff_id = copy_text(image->layers[i].diff_id);
		device->seen = calloc(device->layer.table.count + 1, 1);
		atomic_init(&device->mark, LFS_NO_MARK);
		atomic_init(&device->ignores_holes, false);
		if (!device->layer.digest || !device->layer.diff_id ||
		    !device->seen)
			return ENOMEM;
		if (device->layer.states_size < device->layer.table.count ||
		    device->layer.table.count >= LFS_NO_MARK)
			return EINVAL;
	}
	return 0;
}

static int copy_attributes(struct lfs_server *server,
			   const struct lfs_image *image)
{
	const struct lfs_attribute *given;
	struct lfs_own_attribute *own;
	size_t i;

	server->attribute_count = image->attribute_count;
	server->attributes =
		calloc(image->attribute_count + 1, sizeof(*server->attributes));
	if (!server->attributes)
		return ENOMEM;
	for (i = 0; i < image->attribute_count; i++) {
		given = &image->attributes[i];
		own = &server->attributes[i];
		own->name = copy_text(given->name);
		if (!own->name)
			return ENOMEM;
		own->name_size = strlen(own->name);
		if (!given->value)
			continue;
		own->value = malloc(given->value_size + 1);
		if (!own->value)
			return ENOMEM;
		memcpy(own->value, given->value, given->value_size);
		own->value_size = given->value_size;
	}
	return 0;
}

static int clone_connection(int device_fd)
{
	uint32_t source = (uint32_t)device_fd;
	int fd = open(FUSE_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -1;
	if (ioctl(fd, FUSE_DEV_IOC_CLONE, &source) == 0)
		return fd;
	close(fd);
	return -1;
}

static int create_workers(struct lfs_server *server)
{
	struct lfs_worker *worker;
	unsigned i;

	for (i = 0; i < server->options.threads; i++) {
		worker = &server->workers[i];
		worker->server = server;
		worker->number = i;
		worker->fd = i && i <= server->options.clone_count
				     ? server->options.clones[i - 1]
				     : server->device_fd;
		atomic_init(&worker->has_ended, false);
		worker->in = malloc(LFS_IN_SIZE);
		worker->out = malloc(LFS_OUT_SIZE);
		if (!worker->in || !worker->out)
			return ENOMEM;
	}
	server->options.clones = NULL; /* the caller's list may go away */
	return 0;
}

int lfs_server_create(struct lfs_server **server_ret, int device_fd,
		      const struct lfs_image *image,
		      const struct lfs_options *options)
{
	struct lfs_server *server;
	int error;

	if (!options->threads || options->threads > LFS_MAX_THREADS ||
	    !options->max_waiting || options->max_waiting == LFS_NO_SLOT ||
	    options->max_read < LFS_BLOCK_SIZE ||
	    options->max_read > LFS_MAX_READ)
		return EINVAL;
	server = calloc(1, sizeof(*server));
	if (!server)
		return ENOMEM;
	server->index = image->index;
	server->provenance = image->provenance;
	server->options = *options;
	server->device_fd = device_fd;
	atomic_init(&server->protocol_minor, options->adopted_minor);
	pthread_mutex_init(&server->lock, NULL);
	pthread_mutex_init(&server->answer_lock, NULL);
	server->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = server->event_fd < 0 ? errno : 0;
	if (!error)
		error = copy_layers(server, image);
	if (!error)
		error = copy_attributes(server, image);
	if (!error)
		error = create_workers(server);
	if (!error)
		error = lfs_waiting_create(server);
	server->touches = calloc(options->max_touches + (size_t)1,
				 sizeof(*server->touches));
	if (!error && !server->touches)
		error = ENOMEM;
	if (error) {
		lfs_server_destroy(server);
		return error;
	}
	*server_ret = server;
	return 0;
}

static void wake_up(int number)
{
	(void)number; /* its only purpose is to end a read */
}

static bool answer(struct lfs_worker *worker, size_t size)
{
	const struct lfs_server *server = worker->server;
	struct fuse_in_header header;
	bool goes_on = lfs_dispatch(worker, worker->in, size);

	if (!server->options.stays && size >= sizeof(header)) {
		memcpy(&header, worker->in, sizeof(header));
		lfs_follow(worker, worker->was_large ? 0 : header.pid);
	}
	return goes_on;
}

static void *serve(void *argument)
{
	struct lfs_worker *worker = argument;
	struct lfs_server *server = worker->server;
	bool goes_on = true;
	ssize_t size;

	lfs_place(worker);
	while (goes_on && !atomic_load_explicit(&server->is_stopping,
						memory_order_relaxed)) {
		size = read(worker->fd, worker->in, LFS_IN_SIZE);
		if (size > 0)
			goes_on = answer(worker, (size_t)size);
		/* ENOENT: the request was interrupted before we saw it.
		 * ENODEV: unmounted. */
		else if (!size ||
			 (errno != EINTR && errno != ENOENT && errno != EAGAIN))
			goes_on = false;
	}
	atomic_store(&worker->has_ended, true);
	if (atomic_fetch_sub(&server->running, 1) == 1)
		lfs_server_wake(server);
	return NULL;
}

static int start_workers(struct lfs_server *server)
{
	struct lfs_worker *worker;
	unsigned i;
	int error;

	for (i = 0; i < server->options.threads; i++) {
		worker = &server->workers[i];
		if (!i || server->options.share_device ||
		    worker->fd != server->device_fd)
			continue;
		worker->fd = clone_connection(server->device_fd);
		worker->owns_fd = worker->fd >= 0;
		if (!worker->owns_fd)
			worker->fd = server->device_fd;
	}
	for (i = 0; i < server->options.threads; i++) {
		worker = &server->workers[i];
		atomic_fetch_add(&server->running, 1);
		error = pthread_create(&worker->thread, NULL, serve, worker);
		if (error) {
			atomic_fetch_sub(&server->running, 1);
			return error;
		}
		worker->is_joinable = true;
	}
	return 0;
}

int lfs_server_start(struct lfs_server *server)
{
	struct sigaction action = {.sa_handler = wake_up};
	sigset_t all, before;
	int error, flags;

	if (server->is_started)
		return EALREADY;
	flags = fcntl(server->device_fd, F_GETFL);
	if (flags < 0 ||
	    fcntl(server->device_fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		return errno;
	if (sigaction(LFS_STOP_SIGNAL, &action, NULL) < 0)
		return errno;
	server->is_started = true;
	/* Signals of the process are for its other threads */
	sigfillset(&all);
	sigdelset(&all, LFS_STOP_SIGNAL);
	sigdelset(&all, SIGBUS); /* see guard.c; blocked, it would end us */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = start_workers(server);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		lfs_server_stop(server);
	else if (server->options.adopted_minor)
		lfs_server_wake(server); /* ready from the beginning */
	return error;
}

int lfs_server_event_fd(const struct lfs_server *server)
{
	return server->event_fd;
}

bool lfs_server_is_ready(const struct lfs_server *server)
{
	return atomic_load(&server->protocol_minor) != 0;
}

bool lfs_server_is_gone(const struct lfs_server *server)
{
	return server->is_started && !atomic_load(&server->running);
}

void lfs_server_mark(struct lfs_server *server, uint32_t device, uint32_t chunk)
{
	if (device && device <= server->device_count)
		atomic_store(&server->devices[device - 1].mark, chunk);
}

void lfs_server_ignore_holes(struct lfs_server *server, uint32_t device)
{
	if (device && device <= server->device_count)
		atomic_store(&server->devices[device - 1].ignores_holes, true);
}

size_t lfs_server_touches(struct lfs_server *server, size_t start,
			  struct lfs_touch *touches, size_t max)
{
	size_t count = atomic_load(&server->touch_count), copied = 0;
	const struct lfs_touch *touch;

	for (; start < count && copied < max; start++, copied++) {
		touch = &server->touches[start];
		touches[copied].device =
			__atomic_load_n(&touch->device, __ATOMIC_ACQUIRE);
		if (!touches[copied].device)
			break; /* its thread is just about to write it */
		touches[copied].chunk =
			__atomic_load_n(&touch->chunk, __ATOMIC_RELAXED);
	}
	return copied;
}

void lfs_server_statistics(struct lfs_server *server,
			   struct lfs_statistics *statistics)
{
	const struct lfs_counters *counters;
	unsigned i;

	memset(statistics, 0, sizeof(*statistics));
	for (i = 0; i < server->options.threads; i++) {
		counters = &server->workers[i].counters;
		statistics->requests += atomic_load(&counters->requests);
		statistics->reads += atomic_load(&counters->reads);
		statistics->misses += atomic_load(&counters->misses);
		statistics->read_size += atomic_load(&counters->read_size);
		statistics->interrupted += atomic_load(&counters->interrupted);
		statistics->refused += atomic_load(&counters->refused);
		statistics->faults += atomic_load(&counters->faults);
	}
	pthread_mutex_lock(&server->lock);
	statistics->waiting = server->waiting;
	pthread_mutex_unlock(&server->lock);
	statistics->threads = atomic_load(&server->running);
	statistics->protocol_minor = atomic_load(&server->protocol_minor);
	statistics->init_flags = atomic_load(&server->init_flags);
}

void lfs_server_stop(struct lfs_server *server)
{
	struct timespec pause = {.tv_nsec = STOP_RETRY_NANOSECONDS};
	struct lfs_worker *worker;
	unsigned i;

	atomic_store(&server->is_stopping, true);
	for (i = 0; i < server->options.threads; i++) {
		worker = &server->workers[i];
		if (!worker->is_joinable)
			continue;
		/* Again and again: the first may come just before the read */
		while (!atomic_load(&worker->has_ended)) {
			pthread_kill(worker->thread, LFS_STOP_SIGNAL);
			if (!atomic_load(&worker->has_ended))
				nanosleep(&pause, NULL);
		}
		pthread_join(worker->thread, NULL);
		worker->is_joinable = false;
	}
}

void lfs_server_destroy(struct lfs_server *server)
{
	struct lfs_worker *worker;
	size_t i;

	lfs_server_stop(server);
	for (i = 0; i < server->options.threads; i++) {
		worker = &server->workers[i];
		if (worker->owns_fd)
			close(worker->fd);
		free(worker->in);
		free(worker->out);
	}
	for (i = 0; server->devices && i < server->device_count; i++) {
		free((void *)(uintptr_t)server->devices[i].layer.digest);
		free((void *)(uintptr_t)server->devices[i].layer.diff_id);
		free((void *)server->devices[i].seen);
	}
	for (i = 0; server->attributes && i < server->attribute_count; i++) {
		free(server->attributes[i].name);
		free(server->attributes[i].value);
	}
	free(server->devices);
	free(server->attributes);
	free(server->touches);
	lfs_waiting_destroy(server);
	if (server->event_fd >= 0)
		close(server->event_fd);
	pthread_mutex_destroy(&server->answer_lock);
	pthread_mutex_destroy(&server->lock);
	free(server);
}
