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

/* Whether there is something to tell of a row. */
static inline bool
syncstate_has_news(const SyncState *row)
{
	return row->news.events != 0 || row->news.has_run;
}

/* Keeps an event of a row from being told; returns whether it would have been. */
static inline bool
syncstate_withhold(SyncState *row, Event event)
{
	bool		was_told = (row->news.events & (1 << event)) != 0;

	row->news.events &= ~(1 << event);
	return was_told;
}

extern void syncstate_news_event(NewsList *list, const EventRow *event);
extern void syncstate_news_row(NewsList *list, const SyncState *row);
extern void syncstate_news_write(NewsList *list);

#endif
