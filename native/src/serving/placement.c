/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a thread runs: next to its reader.
 *
 * A program that looks at one file after another sleeps while we answer, and we
 * sleep while it works.  On one processor that is two switches, 9 us in all; on
 * two, each side wakes an idle processor, which in a virtual machine costs 50
 * us and more, and the scheduler, which sees an idle processor, likes to choose
 * it. So a thread that has answered the same task many times in a row moves to
 * the processor of that task, and is free again when another one asks.  With
 * many readers nobody is followed, nor is one that the kernel reads ahead for.
 */
#define _GNU_SOURCE /* sched_setaffinity() */
#include "placement.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server_state.h"

#define FIRST_LOOK 32u	/* requests in a row before it pays */
#define LOOK_EVERY 512u /* the task may be moved: looking costs 15 us */
#define PROCESSOR 37	/* of /proc/PID/stat: fields behind the name, proc(5) */

/* The processor that task 'pid' last ran on, or -1. */
static int processor_of(uint32_t pid)
{
	char path[32], text[1024], *next;
	ssize_t size;
	int fd, field;

	snprintf(path, sizeof(path), "/proc/%u/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return -1;
	text[size] = 0;
	next = strrchr(text, ')');
	for (field = 0; next && field < PROCESSOR; field++)
		next = strchr(next + 1, ' ');
	return next ? atoi(next + 1) : -1;
}

void lfs_place(struct lfs_worker *worker)
{
	struct lfs_placement *placement = &worker->placement;

	placement->is_possible =
		sched_getaffinity(0, sizeof(placement->anywhere),
				  &placement->anywhere) == 0 &&
		CPU_COUNT(&placement->anywhere) > 1;
}

void lfs_follow(struct lfs_worker *worker, uint32_t pid)
{
	struct lfs_placement *placement = &worker->placement;
	cpu_set_t there;
	int processor;

	if (pid != placement->pid) {
		placement->pid = pid;
		placement->streak = 0;
		if (placement->is_bound)
			sched_setaffinity(0, sizeof(placement->anywhere),
					  &placement->anywhere);
		placement->is_bound = false;
		return;
	}
	if (++placement->streak % LOOK_EVERY != FIRST_LOOK || !pid ||
	    !placement->is_possible)
		return;
	processor = processor_of(pid);
	if (processor < 0 || processor >= CPU_SETSIZE ||
	    !CPU_ISSET((size_t)processor, &placement->anywhere))
		return;
	if (placement->is_bound && processor == placement->processor)
		return;
	CPU_ZERO(&there);
	CPU_SET((size_t)processor, &there);
	placement->is_bound = sched_setaffinity(0, sizeof(there), &there) == 0;
	placement->processor = processor;
}
