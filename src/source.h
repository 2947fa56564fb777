/* source.h: calls about a source as a whole */
#ifndef SYNCSTATE_SOURCE_H
#define SYNCSTATE_SOURCE_H

#include "datatype/timestamp.h"

extern void syncstate_pause_source(Oid source, TimestampTz until,
								   TimestampTz now);

#endif
