/*
 * compat.h: what differs between server versions
 *
 * The rest of the code reads as on the newest server.
 */
#ifndef SYNCSTATE_COMPAT_H
#define SYNCSTATE_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/rel.h"
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#endif
#if PG_VERSION_NUM >= 180000
#include "utils/injection_point.h"
#endif

#ifndef pg_noreturn				/* before 18 */
#define pg_noreturn pg_attribute_noreturn()
#endif

/* 18 counts index searches for EXPLAIN, 19 takes flags as well. */
static inline IndexScanDesc
syncstate_index_beginscan(Relation heap, Relation index, Snapshot snapshot,
						  int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0, SO_NONE);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(heap, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(heap, index, snapshot, nkeys, 0);
#endif
}

/* Which indexes an update has to go into; 15 knows all or none. */
typedef enum IndexesToUpdate
{
	INDEXES_NONE,
	INDEXES_SUMMARIZING,
	INDEXES_ALL,
} IndexesToUpdate;

/* 16 says which indexes need the new version, 19 takes options. */
static inline TM_Result
syncstate_table_tuple_update(Relation rel, ItemPointer tid,
							 TupleTableSlot *slot, CommandId cid,
							 Snapshot snapshot, bool wait,
							 IndexesToUpdate *indexes)
{
	TM_FailureData tmfd;
	LockTupleMode lockmode;
	TM_Result	result;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes update = TU_None;
#else
	bool		update = false;
#endif

	result = table_tuple_update(rel, tid, slot, cid,
#if PG_VERSION_NUM >= 190000
								0,
#endif
								snapshot, InvalidSnapshot, wait, &tmfd,
								&lockmode, &update);
#if PG_VERSION_NUM >= 160000
	*indexes = update == TU_None ? INDEXES_NONE :
		update == TU_Summarizing ? INDEXES_SUMMARIZING : INDEXES_ALL;
#else
	*indexes = update ? INDEXES_ALL : INDEXES_NONE;
#endif
	return result;
}

/* 19 takes flags for what were booleans. */
static inline List *
syncstate_insert_index_tuples(ResultRelInfo *target, TupleTableSlot *slot,
							  EState *estate, IndexesToUpdate indexes)
{
#if PG_VERSION_NUM >= 190000
	return ExecInsertIndexTuples(target, estate, EIIT_IS_UPDATE |
								 (indexes == INDEXES_SUMMARIZING ?
								  EIIT_ONLY_SUMMARIZING : 0),
								 slot, NIL, NULL);
#elif PG_VERSION_NUM >= 160000
	return ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL,
								 indexes == INDEXES_SUMMARIZING);
#else
	return ExecInsertIndexTuples(target, slot, estate, true, false, NULL, NIL);
#endif
}

/*
 * Gives the executor a range table of one table, some columns of which are
 * updated.  16 took these out of the table's entry, 18 wants to know which tables
 * were not pruned.
 */
static inline void
syncstate_init_range_table(EState *estate, Oid relid, Bitmapset *updated)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
#if PG_VERSION_NUM >= 160000
	List	   *perminfos = NIL;
#endif

	rte->rtekind = RTE_RELATION;
	rte->relid = relid;
	rte->relkind = RELKIND_RELATION;
	rte->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 160000
	addRTEPermissionInfo(&perminfos, rte)->updatedCols = updated;
#else
	rte->updatedCols = updated;
#endif
#if PG_VERSION_NUM >= 180000
	ExecInitRangeTable(estate, list_make1(rte), perminfos,
					   bms_make_singleton(1));
#elif PG_VERSION_NUM >= 160000
	ExecInitRangeTable(estate, list_make1(rte), perminfos);
#else
	ExecInitRangeTable(estate, list_make1(rte));
#endif
}

/* 16 says more about what is wrong with a time. */
static inline int
syncstate_decode_date_time(char **field, int *ftype, int nf, int *dtype,
						   struct pg_tm *tm, fsec_t *fsec, int *tz)
{
#if PG_VERSION_NUM >= 160000
	DateTimeErrorExtra extra;

	return DecodeDateTime(field, ftype, nf, dtype, tm, fsec, tz, &extra);
#else
	return DecodeDateTime(field, ftype, nf, dtype, tm, fsec, tz);
#endif
}

/*
 * A place where a test may stop a session, if the server is built for that; 17
 * has such places too, with one argument less.
 */
static inline void
syncstate_injection_point(const char *name)
{
#if PG_VERSION_NUM >= 180000
	INJECTION_POINT(name, NULL);
#endif
}

/* 16 frees the values of settings itself, with another function. */
static inline void *
syncstate_guc_malloc(size_t size)
{
#if PG_VERSION_NUM >= 160000
	return guc_malloc(LOG, size);
#else
	return malloc(size);
#endif
}

#endif
