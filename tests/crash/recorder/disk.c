/* Bringing to the disk, and the end of a program. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"
#include "maps.h"
#include "paths.h"

static int sync_recorded(int fd, long call, enum kind kind)
{
	uint64_t object;
	int result;

	if (!is_recorded(fd, &object, NULL))
		return (int)syscall(call, fd);
	WITHIN(result, (int)syscall(call, fd), .kind = kind, .object = object);
	return result;
}
int fsync(int fd) { return sync_recorded(fd, SYS_fsync, FSYNC); }
int fdatasync(int fd) { return sync_recorded(fd, SYS_fdatasync, FDATASYNC); }
int syncfs(int fd) { return sync_recorded(fd, SYS_syncfs, SYNC); }

static void end(void)
{
	if (!is_recording())
		return;
	take_lock();
	look_at_maps();
	let_go();
}
__attribute__((destructor)) static void end_of_program(void)
{
	end();
}
void _exit(int status)
{
	end();
	syscall(SYS_exit_group, status);
	__builtin_unreachable();
}

/* For workloads: write a line into the log, between what is written down. */
void crash_mark(const char *text)
{
	if (!is_recording())
		return;
	take_lock();
	look_at_maps();
	write_down(&(struct record){.kind = MARK, .data = text, .data_size = strlen(text)});
	let_go();
}
