/* Simulates a filesystem with broken locks for one program: this preloaded library answers in place of libc.
 *
 * NOLOCK=nobody  every process gets every lock at once, like processes on several nodes of a mount whose flock excludes
 *                only on one node: each process stands for a process on another node
 * NOLOCK=ENOSYS, ENOLCK
 *                every lock fails with this error, as on mounts without flock, or without their lock server
 *
 * filelock and datasets use flock(2); the library answers the locks of fcntl(2) and lockf(3) in the same way.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* Return 1 if libc must answer; else the answer, with errno set. */
static int answer(void)
{
    const char *mode = getenv("NOLOCK");

    if (mode == NULL)
        return 1;
    if (strcmp(mode, "nobody") == 0)
        return 0;
    if (strcmp(mode, "ENOSYS") == 0)
        errno = ENOSYS;
    else if (strcmp(mode, "ENOLCK") == 0)
        errno = ENOLCK;
    else
        abort();
    return -1;
}

int flock(int fd, int operation)
{
    int given = answer();

    return given != 1 ? given : ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

int lockf(int fd, int command, off_t length)
{
    int given = answer();

    return given != 1 ? given : ((int (*)(int, int, off_t))dlsym(RTLD_NEXT, "lockf"))(fd, command, length);
}

static int control(const char *name, int fd, int command, void *argument)
{
    int is_lock = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    int given = is_lock ? answer() : 1;

    return given != 1 ? given : ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return control("fcntl", fd, command, argument);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return control("fcntl64", fd, command, argument);
}
