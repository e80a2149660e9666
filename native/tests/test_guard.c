/* SPDX-License-Identifier: Apache-2.0 */
/* Maps whose files are cut: zeros for who is guarded, an end for who is not. */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#define SIZE (4 * 4096)

static volatile uint8_t *map_of(int *fd)
{
	uint8_t *map;

	*fd = memfd_create("map", MFD_CLOEXEC);
	CHECK(*fd >= 0 && ftruncate(*fd, SIZE) == 0);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	CHECK(map != MAP_FAILED);
	memset(map, 7, SIZE);
	return map;
}

/* Does touching 'place' end a process? */
static bool is_deadly(volatile uint8_t *place)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		signal(SIGALRM, SIG_DFL);
		alarm(20);
		_exit(*place ? 1 : 0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	return !WIFEXITED(status) || WEXITSTATUS(status) > 1;
}

int main(void)
{
	volatile uint8_t *map, *other, *third;
	int fd, other_fd, third_fd;

	alarm(100);
	signal(SIGBUS, SIG_DFL); /* a sanitizer may have one of its own */
	map = map_of(&fd);
	other = map_of(&other_fd);
	third = map_of(&third_fd);
	CHECK(lfs_guard((void *)(uintptr_t)map, SIZE) == 0);
	CHECK(lfs_guard((void *)(uintptr_t)third, SIZE) == 0);
	CHECK(ftruncate(fd, 4096) == 0);
	CHECK(ftruncate(third_fd, 0) == 0);
	CHECK(map[4095] == 7 && map[4096] == 0 && map[SIZE - 1] == 0);
	map[4097] = 2; /* for us only */
	CHECK(map[4097] == 2 && lseek(fd, 0, SEEK_END) == 4096);
	CHECK(third[0] == 0 && third[SIZE - 1] == 0);
	/* The file is as it was again: pages that were never touched, too */
	CHECK(ftruncate(fd, SIZE) == 0);
	CHECK(map[8192] == 0 && map[4097] == 2);
	/* Whoever is not guarded meets his end */
	CHECK(!is_deadly(other));
	CHECK(ftruncate(other_fd, 0) == 0);
	CHECK(is_deadly(other));
	lfs_unguard((void *)(uintptr_t)third);
	third = map_of(&third_fd);
	CHECK(ftruncate(third_fd, 0) == 0);
	CHECK(is_deadly(third));
	CHECK(lfs_guard((void *)(uintptr_t)third, SIZE) == 0);
	CHECK(!is_deadly(third));
	return 0;
}
