/*
 * lease.pml: the design of claims, leases, hints, requests and caps, for spin
 *
 * Workers claim and report rows; anybody may ask for a sync at any time;
 * leases run out at any time.  FAULTS times in all, a transaction is rolled
 * back or commits late, a worker dies, a lease is renewed, the row's account is
 * limited, a session loses its hints, a row is deleted and made anew, or a call
 * without a lease ends a run.  Checked for every order of all these steps, with
 * ROWS (1 or 2) and WORKERS (1 to 3).
 * README.md beside this file says what stands for what, and what is left out;
 * 041_design.pl runs it.
 *
 * ANY_ROW does without the hints: a walk may take any row that is open, so this
 * says more about leases with fewer states, and nothing about finding rows.
 *
 * ORDINARY: nobody ever asks for row 0, while row 1 is asked for all the time.
 *
 * CAP: the two rows are of one quota domain, whose max_in_flight is 1.
 *
 * Each of these leaves out a part of the design, and must be found wrong:
 *
 *	NO_FENCE		a report with a lease asks only whether the row is syncing
 *	NO_STATUS		a report with a lease asks only for its number
 *	NO_RECHECK		a claim does not look again at the row that it has locked
 *	NO_SWEEP		only what lies ahead of the mark is found
 *	ONE_SWEEP		... and what the first sweep of a session finds
 *	NO_SHARE		requested rows always go first
 *	LOSE_REQUEST	the end of a run forgets a request made during it
 *	NUMBERS_AGAIN	a row that is made anew counts from the beginning
 *	NO_LEASE_NEEDED	a report without a lease ends whatever run there is
 *	NO_DOMAIN_LOCK	a claim counts what runs in a domain that others may start in
 *	COUNTED_BEFORE	... or counts it, and locks the domain then
 */

#define NOBODY	255

/*
 * A row.  All of it but "locked" is what the last committed version says.
 */
typedef Row {
	bool syncing;				/* status, and there is a lease_expires_at */
	bool expired;				/* lease_expires_at has passed */
	bool due;					/* due_at has passed */
	bool requested;				/* requested_at is set */
	bool gap;					/* request_gap has not passed since the last start */
	bool waits;					/* its run was lost, and the backoff has not passed */
	bool limited;				/* limited_until has not passed */
	bool anew;					/* deleted and made anew since the last start */
	byte locked;				/* whose transaction has locked it, or NOBODY */

	/* for the claims only: what really happened */
	bool asked;					/* somebody asked since the last start */
	byte runner					/* whose run it is that has not ended, or NOBODY */
};
Row row[ROWS];

/*
 * What a session knows: of each row, whether the number that it was given is
 * still the row's (numbers only grow: one that is not will never be again),
 * and its hints for each lane.
 */
typedef Session {
	bool current[ROWS];
	bool ahead_due[ROWS];		/* the row's entry is ahead of the mark */
	bool ahead_req[ROWS];
	bool left_due[ROWS];		/* ... is ahead of the sweep position */
	bool left_req[ROWS];
	bool share;					/* the due lane's turn to go first */
	bool swept					/* a sweep is over */
};
Session session[WORKERS];

/* Whose due_at, and whose requested_at, is the older one */
byte oldest_due, oldest_req;

/* Whose transaction has locked the quota domain, with CAP */
byte domain = NOBODY;

/* What could go on for ever with nothing being wrong happens so often only. */
byte faults = FAULTS;

#define me	session[w]			/* of the process at hand */

#define OPEN(r)		((row[r].due || (row[r].requested && !row[r].gap)) && \
					 (!row[r].syncing || (row[r].expired && !row[r].waits)) && \
					 !row[r].limited)
#define UNLOCKED(r)	(row[r].locked == NOBODY)

/* What a claim asks of a row that it would lock */
#ifdef NO_RECHECK
#define TAKEABLE(r)	UNLOCKED(r)
#else
#define TAKEABLE(r)	(UNLOCKED(r) && OPEN(r))
#endif

/* What a report with a lease asks of the row that it has locked */
#if defined(NO_FENCE)
#define HELD(r)		(row[r].syncing)
#elif defined(NO_STATUS)
#define HELD(r)		(me.current[r])
#else
#define HELD(r)		(row[r].syncing && me.current[r])
#endif

#ifdef NO_SWEEP
#define SWEEPING	false
#elif defined(ONE_SWEEP)
#define SWEEPING	(!me.swept)
#else
#define SWEEPING	true
#endif

/* Whether a sync of the row's quota domain may start */
#define ROOM(r)		(!row[OTHER(r)].syncing || row[OTHER(r)].expired)

#if ROWS == 2
#define OTHER(r)	(1 - (r))
#define LATEST(r, member)	(row[OTHER(r)].member -> OTHER(r) : r)
#else
#define OTHER(r)	(r)
#define LATEST(r, member)	(r)
#endif

/*
 * Where an entry lies that was there at a time, but is seen only from now on:
 * ahead of a session's mark or behind it.
 */
#define PLACE_IN(s, hint, r) \
	if \
	:: session[s].hint[r] = true \
	:: session[s].hint[r] = false \
	fi
#ifdef ANY_ROW
#undef PLACE_IN
#define PLACE_IN(s, hint, r)	skip
#endif
#if WORKERS == 1
#define PLACE(hint, r)	PLACE_IN(0, hint, r)
#define ALL(member, r, value)	session[0].member[r] = value
#elif WORKERS == 2
#define PLACE(hint, r)	PLACE_IN(0, hint, r); PLACE_IN(1, hint, r)
#define ALL(member, r, value) \
	session[0].member[r] = value; session[1].member[r] = value
#else
#define PLACE(hint, r)	PLACE_IN(0, hint, r); PLACE_IN(1, hint, r); PLACE_IN(2, hint, r)
#define ALL(member, r, value) \
	session[0].member[r] = value; session[1].member[r] = value; \
	session[2].member[r] = value
#endif

/*
 * The walk looks at a row's entry if "condition" has it in this part of the
 * lane, and takes the row if it is open and nobody has it locked.  What it has
 * looked at is behind it, taken or not.  It stops with one row.
 */
#define LOOK(r, condition, hint) \
	if \
	:: got == NOBODY && (condition) -> \
		hint = false; \
		if \
		:: OPEN(r) && UNLOCKED(r) -> got = r \
		:: else \
		fi \
	:: else \
	fi

/* A step of the sweep: one entry, or the end and a new sweep from the start */
#define SWEEP(first, member, ahead, left) \
	if \
	:: got == NOBODY && SWEEPING -> \
		if \
		:: me.left[first] -> \
			LOOK(first, row[first].member && !me.ahead[first], me.left[first]); \
			me.left[first] = false \
		:: else -> \
			if \
			:: me.left[OTHER(first)] -> \
				LOOK(OTHER(first), row[OTHER(first)].member && !me.ahead[OTHER(first)], me.left[OTHER(first)]); \
				me.left[OTHER(first)] = false \
			:: else -> \
				me.left[first] = true; \
				me.left[OTHER(first)] = true; \
				SWEPT \
			fi \
		fi \
	:: else \
	fi

#ifdef ONE_SWEEP
#define SWEPT	me.swept = true
#else
#define SWEPT	skip
#endif

#define LANE(oldest, member, ahead, left) \
	first = oldest; \
	SWEEP(first, member, ahead, left); \
	LOOK(first, row[first].member && me.ahead[first], me.ahead[first]); \
	LOOK(OTHER(first), row[OTHER(first)].member && me.ahead[OTHER(first)], me.ahead[OTHER(first)])

proctype Worker(byte w)
{
	byte got = NOBODY, first;

	do
	::
		/* the walk, which locks nothing yet */
#ifdef ANY_ROW
		atomic {
			if
			:: OPEN(0) && UNLOCKED(0) -> got = 0
#if ROWS == 2
			:: OPEN(1) && UNLOCKED(1) -> got = 1
#endif
			fi
		}
#else
		d_step {
#ifdef NO_SHARE
			me.share = false;
#endif
			if
			:: me.share ->
				LANE(oldest_due, due, ahead_due, left_due);
				LANE(oldest_req, requested, ahead_req, left_req)
			:: else ->
				LANE(oldest_req, requested, ahead_req, left_req);
				LANE(oldest_due, due, ahead_due, left_due)
			fi;
			me.share = !me.share;
			first = 0
		}
#endif
		if
		:: got == NOBODY -> goto again
		:: else
		fi;

#ifdef CAP
		/* nobody else may start a row of the domain, and then what runs is counted */
#ifdef COUNTED_BEFORE
		if
		:: ROOM(got)
		:: else -> got = NOBODY; goto again
		fi;
#endif
		atomic {
			if
#ifdef NO_DOMAIN_LOCK
			:: ROOM(got)
#elif defined(COUNTED_BEFORE)
			:: domain == NOBODY -> domain = w
#else
			:: domain == NOBODY && ROOM(got) -> domain = w
#endif
			:: else -> got = NOBODY; goto again
			fi
		}
#endif

		/* the lock, which does not wait, and a second look */
		atomic {
			if
			:: TAKEABLE(got) -> row[got].locked = w
			:: else -> got = NOBODY; goto again
			fi
		}

		/* the end of the transaction */
		atomic {
			row[got].locked = NOBODY;
			if
			:: faults > 0 -> faults--; got = NOBODY; goto again	/* rolled back */
			:: true
			fi;
			/* there are no two live leases */
			assert(!row[got].syncing || row[got].expired);
#ifdef CAP
			/* nor two of the domain */
			assert(ROOM(got));
			domain = NOBODY;
#endif
			row[got].syncing = true;
			row[got].expired = false;
			row[got].requested = false;
			ALL(ahead_req, got, false);
			row[got].asked = false;
			row[got].gap = (got == 0);	/* the properties are about this row */
			row[got].waits = false;
			if
			:: row[got].due
			:: else ->
				row[got].due = true;
				oldest_due = LATEST(got, due);
				PLACE(ahead_due, got)
			fi;
#ifdef NUMBERS_AGAIN
			if
			:: row[got].anew			/* an old number is the row's again */
			:: else -> ALL(current, got, false)
			fi;
#else
			ALL(current, got, false);
#endif
			row[got].anew = false;
			me.current[got] = true;
			row[got].runner = w
		}

		/* the work, which may take longer than the lease */
		if
		:: skip
#ifndef CAP			/* a late renewal is not refused for what started since */
		:: atomic {
				faults > 0 && UNLOCKED(got) -> faults--;
				if
				:: HELD(got) ->		/* renewed */
					row[got].expired = false;
					row[got].waits = false
				:: else
				fi
			}
#endif
		:: atomic { faults > 0 -> faults--; got = NOBODY; goto again }	/* died */
		fi;

		/* the report waits for the lock, and looks at the version it then sees */
		atomic {
			UNLOCKED(got) ->
			if
			:: HELD(got) -> row[got].locked = w
			:: else -> got = NOBODY; goto again		/* PT409 */
			fi
		}
		atomic {
			row[got].locked = NOBODY;
			if
			:: faults > 0 -> faults--; got = NOBODY; goto again	/* rolled back */
			:: true
			fi;
			/* it was accepted: the row must not be another's, nor this run over */
			assert(row[got].runner == w);
			row[got].runner = NOBODY;
			row[got].syncing = false;
			row[got].expired = false;
			row[got].waits = false;
#ifdef LOSE_REQUEST
			row[got].requested = false;
#endif
			if
			:: row[got].due = false;
				ALL(ahead_due, got, false)
			:: faults > 0 -> faults--;				/* committed late */
				oldest_due = LATEST(got, due);
				PLACE(ahead_due, got)
			fi;
			got = NOBODY
		}
again:
#ifdef CAP
		if
		:: domain == w -> domain = NOBODY
		:: else
		fi
#else
		skip
#endif
	od
}

/* Time: an interval or a backoff passes, */
proctype Interval(byte r)
{
	do
	:: atomic {
			!row[r].due && !row[r].syncing && UNLOCKED(r) ->
			row[r].due = true;
			oldest_due = LATEST(r, due);
#ifndef ANY_ROW
			ALL(ahead_due, r, true)		/* it was ahead of every mark */
#endif
		}
	od
}

/* ... a lease runs out, maybe not the first one in a row, and then there is a wait, */
proctype Lease(byte r)
{
	do
	:: atomic {
			row[r].syncing && !row[r].expired ->
			row[r].expired = true;
			if
			:: r == 0 -> row[r].waits = true
			:: row[r].waits = false
			fi
		}
	:: atomic { row[r].waits -> row[r].waits = false }
	od
}

/* ... and the gap after a start passes. */
proctype Gap(byte r)
{
	do
	:: atomic { row[r].gap -> row[r].gap = false }
	od
}

/* mark_rate_limited() of another row of the account, whose end passes too */
proctype Limit(byte r)
{
	do
	:: atomic { faults > 0 && UNLOCKED(r) -> faults--; row[r].limited = true }
	:: atomic { row[r].limited -> row[r].limited = false }
	od
}

/* request_sync(): waits for the lock; a repeat writes nothing */
proctype Requester(byte r)
{
	do
	:: atomic {
			UNLOCKED(r) && !row[r].requested ->
			row[r].requested = true;
			row[r].asked = true;
			oldest_req = LATEST(r, requested);
			PLACE(ahead_req, r)
		}
	od
}

/* clear_sync_token() without a lease: ends a run that somebody holds */
proctype Revoker(byte r)
{
	do
	:: atomic {
			faults > 0 && UNLOCKED(r) -> faults--;
			row[r].syncing = false;
			row[r].expired = false;
			row[r].waits = false;
			row[r].runner = NOBODY;
			row[r].due = true;
			oldest_due = LATEST(r, due);
			PLACE(ahead_due, r)
		}
	od
}

/* A report without a lease, which a run that a claim handed out takes while it is live */
proctype Stranger(byte r)
{
	do
	:: atomic {
			faults > 0 && UNLOCKED(r) && row[r].syncing &&
#ifdef NO_LEASE_NEEDED
			true -> faults--;
#else
			row[r].expired -> faults--;
#endif
			assert(row[r].expired);
			row[r].syncing = false;
			row[r].expired = false;
			row[r].waits = false;
			row[r].runner = NOBODY;
			row[r].due = false;
			ALL(ahead_due, r, false)
		}
	od
}

/* disconnect_sync() and connect_sync() */
proctype Deleter(byte r)
{
	do
	:: atomic {
			faults > 0 && UNLOCKED(r) -> faults--;
			row[r].syncing = false;
			row[r].expired = false;
			row[r].waits = false;
			row[r].gap = false;
			row[r].anew = true;
			row[r].runner = NOBODY;
			row[r].due = true;
			oldest_due = LATEST(r, due);
			PLACE(ahead_due, r);
			row[r].requested = true;
			row[r].asked = true;
			oldest_req = LATEST(r, requested);
			PLACE(ahead_req, r)
		}
	od
}

/* A session ends, and another takes its place, whose mark lies elsewhere. */
proctype Reconnect(byte w)
{
	do
	:: atomic {
			faults > 0 -> faults--;
			PLACE_IN(w, ahead_due, 0);
			PLACE_IN(w, ahead_req, 0);
			me.left_due[0] = false;
			me.left_req[0] = false;
#if ROWS == 2
			PLACE_IN(w, ahead_due, 1);
			PLACE_IN(w, ahead_req, 1);
			me.left_due[1] = false;
			me.left_req[1] = false;
#endif
			me.swept = false
		}
	od
}

init
{
	byte i;

	atomic {
		for (i : 0 .. ROWS - 1) {
			row[i].locked = NOBODY;
			row[i].runner = NOBODY;
			row[i].due = true;
#ifndef ANY_ROW
			ALL(ahead_due, i, true);
#endif
			run Interval(i);
			run Lease(i);
			if
#ifdef ORDINARY
			:: i == 0
#endif
			:: else -> run Requester(i)
			fi
		}
		for (i : 0 .. WORKERS - 1) {
			run Worker(i)
		}
		run Gap(0);
		run Limit(0);
		run Revoker(0);
#ifdef ANY_ROW
		/* what these do to hints, the one before does too */
		run Stranger(0);
		run Deleter(0);
#endif
		run Reconnect(0);
		i = 0
	}
}

#define CLAIMABLE	(row[0].due && (!row[0].syncing || row[0].expired))

ltl request_kept { [] (!row[0].asked || row[0].requested) }
ltl request_served { [] (row[0].asked -> <> !row[0].asked) }
ltl due_claimed { [] (CLAIMABLE -> <> !CLAIMABLE) }
