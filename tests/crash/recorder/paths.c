/* What is recorded. */
#define _GNU_SOURCE
#include "paths.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"

static bool is_below_root(const char *path)
{
	return !strncmp(path, root, root_size) && (path[root_size] == '/' || !path[root_size]);
}

bool is_recorded(int fd, uint64_t *object, mode_t *mode)
{
	char entry[64], path[PATH_MAX];
	struct stat status;
	ssize_t size;

	if (!is_recording() || fd < 0 || syscall(SYS_newfstatat, fd, "", &status, AT_EMPTY_PATH))
		return false;
	if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))
		return false;
	if (status.st_dev != root_device)
		return false;
	snprintf(entry, sizeof(entry), "/proc/self/fd/%d", fd);
	size = syscall(SYS_readlinkat, AT_FDCWD, entry, path, sizeof(path) - 1);
	if (size <= 0)
		return false;
	path[size] = 0;
	*object = status.st_ino;
	if (mode)
		*mode = status.st_mode;
	return is_below_root(path);
}

bool is_recorded_path(int at, const char *path, uint64_t *folder, char *name)
{
	char above[PATH_MAX];
	size_t size;
	const char *slash;
	bool found;
	int fd;

	if (!is_recording() || !path || !(size = strlen(path)) || size >= sizeof(above))
		return false;
	memcpy(above, path, size + 1);
	while (size > 1 && above[size - 1] == '/')
		above[--size] = 0;
	slash = strrchr(above, '/');
	if (strlen(slash ? slash + 1 : above) > NAME_MAX)
		return false;
	strcpy(name, slash ? slash + 1 : above);
	if (!slash)
		strcpy(above, ".");
	else if (slash == above)
		strcpy(above, "/");
	else
		above[slash - above] = 0;
	fd = raw_open(at, above, O_PATH | O_DIRECTORY);
	if (fd < 0)
		return false;
	found = is_recorded(fd, folder, NULL);
	syscall(SYS_close, fd);
	return found;
}

uint64_t number_of(int at, const char *path, int64_t *size)
{
	struct stat status;

	if (syscall(SYS_newfstatat, at, path, &status, AT_SYMLINK_NOFOLLOW))
		return 0;
	if (size)
		*size = status.st_size;
	return status.st_ino;
}
