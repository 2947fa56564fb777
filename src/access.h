/* access.h: ways to the rows of sync_state */
#ifndef SYNCSTATE_ACCESS_H
#define SYNCSTATE_ACCESS_H

#include "access/genam.h"
#include "access/tableam.h"
#include "nodes/execnodes.h"
#include "compat.h"
#include "news.h"
#include "state.h"

/*
 * A way to the rows of sync_state; the fields are access.c's own, but "plain",
 * "sees_all" and "news".
 */
typedef struct RowAccess
{
	Relation	rel;
	bool		plain;			/* without statements */
	bool		sees_all;		/* row security hides nothing */

	/*
	 * One for all that is written, as a statement has, so that a row that was
	 * written is told from one that cannot be seen; a new one for each look.
	 */
	CommandId	command;

	/* one look at the table */
	BlockNumber nblocks;
	TupleTableSlot *slot;
	Relation	pkey;			/* opened with the scan, when it is needed */
	IndexScanDesc scan;

	/* what writing takes, from the first write on */
	TupleTableSlot *new;
	EState	   *estate;			/* NULL: no executor was needed so far */
	ResultRelInfo *target;

	NewsList	news;			/* written when the way is closed */
} RowAccess;

extern bool syncstate_is_plain(Relation rel, AclMode mode);
extern void syncstate_key_conditions(const SyncKey *key, ScanKeyData *conditions);
extern void syncstate_rows_open(RowAccess *rows);
extern void syncstate_rows_close(RowAccess *rows);
extern void syncstate_rows_look(RowAccess *rows);
extern bool syncstate_rows_read(RowAccess *rows, const SyncKey *key,
								SyncState *row);
extern bool syncstate_rows_lock(RowAccess *rows, const SyncKey *key,
								SyncState *row);
extern void syncstate_rows_lock_or_make(RowAccess *rows, const SyncKey *key,
										bool make, SyncState *row);
extern bool syncstate_rows_lock_version(RowAccess *rows, ItemPointerData tid,
										Snapshot snapshot,
										TupleTableSlot *slot, SyncState *row);
extern bool syncstate_rows_try(RowAccess *rows, const SyncState *row,
							   HeapTuple *result);
extern HeapTuple syncstate_rows_write(RowAccess *rows, const SyncState *row);
extern Datum syncstate_row_datum(HeapTuple tuple);
extern bool syncstate_fetch_version(Relation rel, ItemPointerData tid,
									Snapshot snapshot, TupleTableSlot *slot);
extern const char *syncstate_key_detail(const SyncKey *key);
pg_noreturn extern void syncstate_no_such_row(const SyncKey *key);

#endif
