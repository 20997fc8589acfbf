/* A filesystem on which locks do not lock, for one program: preloaded, it answers in place of libc.
 *
 * NOLOCK=nobody  every lock is granted at once to everybody, as on mounts whose flock excludes only on one node, seen
 *                from several nodes: each process stands for one on a node of its own
 * NOLOCK=ENOSYS, ENOLCK
 *                every lock fails with that error, as on mounts without flock, or whose lock server is gone
 *
 * flock(2) is what filelock and datasets use; fcntl(2)'s and lockf(3)'s locks are answered the same way.
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

/* 1: not ours to answer. Else the answer, with errno set. */
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
