/* news.h: what happened: the rows of sync_event and sync_run */
#ifndef SYNCSTATE_NEWS_H
#define SYNCSTATE_NEWS_H

#include "nodes/pg_list.h"
#include "state.h"

/* A row of sync_event. */
typedef struct EventRow
{
	Event		event;
	TimestampTz at;
	const SyncKey *key;			/* NULL: of no user, but of the source */
	bool		of_account;		/* of all rows of the key's account */
	Oid			source;			/* without a key */
	int64		lease;			/* NO_COUNT: in no run */
	text	   *reason;			/* or NULL */
	text	   *detail;			/* or NULL */
} EventRow;

/* Rows of a table, as composite values. */
typedef struct NewsRows
{
	Datum	   *rows;
	int			nrows;
	int			room;
} NewsRows;

/* What a call has to tell; all of it lives in the context. */
typedef struct NewsList
{
	MemoryContext context;
	NewsRows	events;
	NewsRows	runs;
	List	   *sources;		/* of the runs */
} NewsList;

extern void syncstate_news_event(NewsList *list, const EventRow *event);
extern void syncstate_news_row(NewsList *list, const SyncState *row);
extern void syncstate_news_write(NewsList *list);

#endif
