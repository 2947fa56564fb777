/* syncstate.h: the clock, and the SQLSTATEs of our own */
#ifndef SYNCSTATE_H
#define SYNCSTATE_H

#include "datatype/timestamp.h"

/* PostgREST turns these into HTTP 404 and 409; see doc/syncstate.md. */
#define ERRCODE_NO_SUCH_ROW		MAKE_SQLSTATE('P','T','4','0','4')
#define ERRCODE_LEASE_LOST		MAKE_SQLSTATE('P','T','4','0','9')

/* Leases that began by the clock are greater: this is September 2001. */
#define LEASE_BY_CLOCK			1000000000000000

extern TimestampTz syncstate_now(void);
extern bool syncstate_clock_is_set(void);
extern int64 syncstate_first_lease(void);

#endif
