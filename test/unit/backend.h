/* backend.h: what a server does for the state machine, for a program without one */
#ifndef BACKEND_H
#define BACKEND_H

/* The program prints like any other, not by the server's functions. */
#undef fprintf
#undef printf
#undef snprintf
#undef vsnprintf

/* The next random number that the state machine draws, in [0, 1). */
extern double next_draw;

extern void keep_memory(void);
extern void reset_memory(void);

#endif
