/*
 * kinds.h: how a column of each kind is read and written: see columns.h
 *
 * READ_... reads a Datum "value", which is null where "isnull" is true; NULL_...
 * says whether a field stands for null, and DATUM_... makes a Datum of it.
 */
#ifndef SYNCSTATE_KINDS_H
#define SYNCSTATE_KINDS_H

#include "catalog.h"
#include "check.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/*
 * The values that stand for null are refused where somebody writes them.  No
 * stored row has one, since the CHECK keeps them out.
 */
static inline TimestampTz
syncstate_time_of(Datum value, const char *column)
{
	if (DatumGetTimestampTz(value) == NO_TIME)
		syncstate_check_time(column, NO_TIME);
	return DatumGetTimestampTz(value);
}

static inline int64
syncstate_count_of(Datum value, const char *column)
{
	syncstate_check_count(column, DatumGetInt64(value));
	return DatumGetInt64(value);
}

static inline double
syncstate_amount_of(Datum value, const char *column)
{
	syncstate_check_amount(column, DatumGetFloat8(value));
	return DatumGetFloat8(value);
}

#define READ_UUID(name)		*DatumGetUUIDP(value)
#define READ_SOURCE(name)	DatumGetObjectId(value)
#define READ_NAME(name)		DatumGetTextPP(value)
#define READ_STATUS(name)	syncstate_status_of(DatumGetObjectId(value))
#define READ_BYTES(name)	isnull ? NULL : DatumGetByteaPP(value)
#define READ_TOKEN(name)	isnull ? NULL : (text *) DatumGetPointer(value)
#define READ_HISTORY_ID(name)	isnull ? NULL : DatumGetTextPP(value)
#define READ_REASON(name)	isnull ? NULL : DatumGetTextPP(value)
#define READ_MESSAGE(name)	READ_TOKEN(name)
#define READ_TIME(name)		isnull ? NO_TIME : syncstate_time_of(value, #name)
#define READ_INTERVAL(name)	isnull ? NULL : DatumGetIntervalP(value)
#define READ_NUMBER(name)	DatumGetInt64(value)
#define READ_COUNT(name)	isnull ? NO_COUNT : syncstate_count_of(value, #name)
#define READ_INTEGER(name)	DatumGetInt32(value)
#define READ_TALLY(name)	isnull ? 0 : DatumGetInt32(value)
#define READ_AMOUNT(name)	isnull ? NO_AMOUNT : syncstate_amount_of(value, #name)
#define READ_FLAG(name)		DatumGetBool(value)

#define NULL_UUID(field)	false
#define NULL_SOURCE(field)	false
#define NULL_NAME(field)	false
#define NULL_STATUS(field)	false
#define NULL_BYTES(field)	((field) == NULL)
#define NULL_TOKEN(field)	((field) == NULL)
#define NULL_HISTORY_ID(field)	((field) == NULL)
#define NULL_REASON(field)	((field) == NULL)
#define NULL_MESSAGE(field)	((field) == NULL)
#define NULL_TIME(field)	((field) == NO_TIME)
#define NULL_INTERVAL(field)	((field) == NULL)
#define NULL_NUMBER(field)	false
#define NULL_COUNT(field)	((field) == NO_COUNT)
#define NULL_INTEGER(field)	false
#define NULL_TALLY(field)	false
#define NULL_AMOUNT(field)	((field) == NO_AMOUNT)
#define NULL_FLAG(field)	false

#define DATUM_UUID(field)		UUIDPGetDatum(&(field))
#define DATUM_SOURCE(field)		ObjectIdGetDatum(field)
#define DATUM_NAME(field)		PointerGetDatum(field)
#define DATUM_STATUS(field)		ObjectIdGetDatum(syncstate_ids()->status_labels[field])
#define DATUM_BYTES(field)		PointerGetDatum(field)
#define DATUM_TOKEN(field)		PointerGetDatum(field)
#define DATUM_HISTORY_ID(field)	PointerGetDatum(field)
#define DATUM_REASON(field)		PointerGetDatum(field)
#define DATUM_MESSAGE(field)	PointerGetDatum(field)
#define DATUM_TIME(field)		TimestampTzGetDatum(field)
#define DATUM_INTERVAL(field)	IntervalPGetDatum(field)
#define DATUM_NUMBER(field)		Int64GetDatum(field)
#define DATUM_COUNT(field)		Int64GetDatum(field)
#define DATUM_INTEGER(field)	Int32GetDatum(field)
#define DATUM_TALLY(field)		DATUM_INTEGER(field)
#define DATUM_AMOUNT(field)		Float8GetDatum(field)
#define DATUM_FLAG(field)		BoolGetDatum(field)

#endif
