/* Shared maps: a page of one changes without a call, so all are compared with what they were. */
#define _GNU_SOURCE
#include "maps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "log.h"
#include "paths.h"

#define PAGE 4096
#define MAPS 512

struct map {
	char *start;
	size_t size;
	uint64_t object;
	int64_t offset;
	char *before;
};
static struct map maps[MAPS];

static void look_at_map(struct map *map)
{
	char now[PAGE];

	for (size_t place = 0; place < map->size; place += PAGE) {
		size_t size = map->size - place < PAGE ? map->size - place : PAGE;
		struct iovec here = {now, size}, there = {map->start + place, size};

		/* What lies behind the file's end is a SIGBUS to whoever reads it, not to this call. */
		if (syscall(SYS_process_vm_readv, getpid(), &here, 1, &there, 1, 0) != (long)size)
			continue;
		if (!memcmp(now, map->before + place, size))
			continue;
		memcpy(map->before + place, now, size);
		write_down(&(struct record){
			.kind = MAPPED,
			.object = map->object,
			.offset = map->offset + (int64_t)place,
			.data = now,
			.data_size = size,
		});
	}
}

void look_at_maps(void)
{
	for (int i = 0; i < MAPS; i++)
		if (maps[i].start)
			look_at_map(&maps[i]);
}

static void *map_recorded(
	void *start, size_t size, int protection, int flags, int fd, off64_t offset)
{
	uint64_t object;
	void *found;
	int i, saved;

	if (!(flags & MAP_SHARED) || !(protection & PROT_WRITE) || !is_recorded(fd, &object, NULL))
		return (void *)syscall(SYS_mmap, start, size, protection, flags, fd, offset);
	take_lock();
	look_at_maps();
	found = (void *)syscall(SYS_mmap, start, size, protection, flags, fd, offset);
	saved = errno;
	if (found != MAP_FAILED) {
		for (i = 0; i < MAPS && maps[i].start; i++)
			;
		if (i == MAPS)
			abort();
		maps[i] = (struct map){
			.size = size, .object = object, .offset = offset, .before = malloc(size)};
		memcpy(maps[i].before, found, size);
		maps[i].start = found;
	}
	let_go();
	errno = saved;
	return found;
}
void *mmap(void *start, size_t size, int protection, int flags, int fd, off_t offset)
{
	return map_recorded(start, size, protection, flags, fd, offset);
}
void *mmap64(void *start, size_t size, int protection, int flags, int fd, off64_t offset)
{
	return map_recorded(start, size, protection, flags, fd, offset);
}

int munmap(void *start, size_t size)
{
	bool is_known = false;
	int result, saved;

	for (int i = 0; is_recording() && i < MAPS; i++)
		is_known |= maps[i].start && maps[i].start == (char *)start;
	if (!is_known)
		return (int)syscall(SYS_munmap, start, size);
	take_lock();
	look_at_maps();
	result = (int)syscall(SYS_munmap, start, size);
	saved = errno;
	for (int i = 0; i < MAPS; i++)
		if (maps[i].start == (char *)start) {
			free(maps[i].before);
			maps[i].start = NULL;
		}
	let_go();
	errno = saved;
	return result;
}

int msync(void *start, size_t size, int flags)
{
	int result = 0, saved;

	if (!is_recording())
		return (int)syscall(SYS_msync, start, size, flags);
	take_lock();
	look_at_maps();
	result = (int)syscall(SYS_msync, start, size, flags);
	saved = errno;
	for (int i = 0; !result && flags & MS_SYNC && i < MAPS; i++)
		if (maps[i].start == (char *)start && maps[i].size <= size)
			write_down(&(struct record){.kind = FDATASYNC, .object = maps[i].object});
	let_go();
	errno = saved;
	return result;
}
