// A server that waits for connections in the way that its first argument names, on descriptor 3.
//
// With a second argument it waits before that until somebody writes to the FIFO of this path.
// It drains at SIGTERM by its end.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int listener = 3;

static void answer(void) {
    int connection = accept(listener, NULL, NULL);
    if (connection >= 0) {
        char request[4096];
        (void)!read(connection, request, sizeof request);
        const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        (void)!write(connection, text, sizeof text - 1);
        close(connection);
    }
}

static void *serve(void *arg) {
    (void)arg;
    for (;;) answer();
    return NULL;
}

// Fills an epoll set by a copy of the descriptor, which it closes then: the set keeps the socket.
static int filled_set(void) {
    int set = epoll_create1(0), copy = dup(listener);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, copy, &event)) abort();
    close(copy);
    return set;
}

static void by_set(int set) {
    struct epoll_event event;
    for (;;) {
        if (epoll_wait(set, &event, 1, -1) == 1) answer();
    }
}

// Binds a port of its own, and tries again for as long as another has it.
static void bind_own(const char *place, int shares) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    char ip[64] = "";
    unsigned port = 0;
    if (sscanf(place, "%63[^:]:%u", ip, &port) != 2 || inet_pton(AF_INET, ip, &address.sin_addr) != 1) abort();
    address.sin_port = htons(port);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (shares) setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    while (bind(listener, (struct sockaddr *)&address, sizeof address)) {
        if (errno != EADDRINUSE) abort();
        fprintf(stderr, "the address is in use\n");
        usleep(10000);
    }
    if (listen(listener, 16)) abort();
    fprintf(stderr, "it listens\n");
    serve(NULL);
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "";
    setvbuf(stderr, NULL, _IOLBF, 0);
    if (!strcmp(way, "binds") || !strcmp(way, "shares")) bind_own(argv[2], way[0] == 's');
    // What waits with a filled set must not pass for ready before it waits on the set.
    int set = strstr(way, "epoll") ? filled_set() : -1;
    if (!strcmp(way, "hidden")) prctl(PR_SET_DUMPABLE, 0);
    // Its child does nothing but to have a child.
    if (!strcmp(way, "grandchild-epoll") && (fork() > 0 || fork() > 0)) {
        for (;;) pause();
    }
    if (argc > 2) {
        fprintf(stderr, "it loads\n");
        int fifo = open(argv[2], O_RDONLY);
        char byte;
        if (fifo < 0 || read(fifo, &byte, 1) != 1) abort();
    }
    fprintf(stderr, "it waits\n");
    if (!strcmp(way, "accept") || !strcmp(way, "hidden")) serve(NULL);
    if (strstr(way, "epoll")) by_set(set);
    if (!strcmp(way, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, serve, NULL);
        for (;;) pause();
    }
    if (!strcmp(way, "poll")) {
        struct pollfd wanted[] = {{.fd = 0, .events = POLLPRI}, {.fd = listener, .events = POLLIN}};
        for (;;) {
            if (poll(wanted, 2, -1) > 0) answer();
        }
    }
    if (!strcmp(way, "select")) {
        for (;;) {
            fd_set wanted;
            FD_ZERO(&wanted);
            FD_SET(listener, &wanted);
            if (select(listener + 1, &wanted, NULL, NULL, NULL) > 0) answer();
        }
    }
    if (!strcmp(way, "datagram")) {
        char piece[16];
        for (;;) (void)!recv(listener, piece, sizeof piece, 0);
    }
    if (!strcmp(way, "busy")) {
        // It calls accept() now and then, and never has done with the first connection.
        fcntl(listener, F_SETFL, O_NONBLOCK);
        while (accept(listener, NULL, NULL) < 0) usleep(10000);
    }
    // It never accepts.
    for (;;) pause();
}
