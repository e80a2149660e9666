/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps of files that others may cut, or that the disk cannot read.
 *
 * Touching what a file does not have any more is SIGBUS, which ends the
 * process.  Of a guarded map such a page is replaced by zeros, for this process
 * only; to a presence map zeros say that nothing is known.  A fault anywhere
 * else goes where it would have gone.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lazyfs_guard.h"

#define MAX_GUARDS (1u << 15) /* more than an image has layers */

static struct {
	_Atomic uintptr_t start;
	_Atomic size_t size; /* 0: the place is free */
} guards[MAX_GUARDS];

static atomic_uint used_guards;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static bool is_installed;
static uintptr_t page_size;

static bool is_guarded(uintptr_t place)
{
	unsigned i, used = atomic_load(&used_guards);
	uintptr_t start;
	size_t size;

	for (i = 0; i < used; i++) {
		size = atomic_load(&guards[i].size);
		start = atomic_load(&guards[i].start);
		if (size && place >= start && place - start < size)
			return true;
	}
	return false;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	uintptr_t place = (uintptr_t)info->si_addr;
	int error = errno;

	/* Only what the kernel found, not what somebody has sent */
	if (info->si_code > 0 && is_guarded(place) &&
	    mmap((void *)(place & ~(page_size - 1)), page_size,
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		 -1, 0) != MAP_FAILED) {
		errno = error;
		return;
	}
	if (before.sa_flags & SA_SIGINFO) {
		before.sa_sigaction(number, info, context);
	} else if (before.sa_handler != SIG_DFL &&
		   before.sa_handler != SIG_IGN) {
		before.sa_handler(number);
	} else {
		/* The instruction is run again, and ends the process */
		sigaction(SIGBUS, &before, NULL);
		if (info->si_code <= 0)
			raise(SIGBUS);
	}
	errno = error;
}

static int install(void)
{
	struct sigaction action = {.sa_sigaction = on_bus_error,
				   .sa_flags = SA_SIGINFO | SA_ONSTACK};

	if (is_installed)
		return 0;
	page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
	if (sigaction(SIGBUS, &action, &before) < 0)
		return errno;
	is_installed = true;
	return 0;
}

int lfs_guard(const void *start, size_t size)
{
	unsigned i, used;
	int error;

	pthread_mutex_lock(&lock);
	error = install();
	used = atomic_load(&used_guards);
	for (i = 0; i < used && atomic_load(&guards[i].size); i++)
		;
	if (!error && i == MAX_GUARDS)
		error = ENOMEM;
	if (!error) {
		atomic_store(&guards[i].start, (uintptr_t)start);
		atomic_store(&guards[i].size, size);
		if (i == used)
			atomic_store(&used_guards, used + 1);
	}
	pthread_mutex_unlock(&lock);
	return error;
}

void lfs_unguard(const void *start)
{
	unsigned i, used;

	pthread_mutex_lock(&lock);
	used = atomic_load(&used_guards);
	for (i = 0; i < used; i++)
		if (atomic_load(&guards[i].start) == (uintptr_t)start)
			atomic_store(&guards[i].size, 0);
	pthread_mutex_unlock(&lock);
}
