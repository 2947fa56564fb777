/* request.h: somebody asks for a sync now */
#ifndef SYNCSTATE_REQUEST_H
#define SYNCSTATE_REQUEST_H

#include "state.h"

/* What a request led to. */
typedef enum RequestEnd
{
	REQUEST_NO_ROW,
	REQUEST_PARKED,				/* nothing was written */
	REQUEST_COMES,				/* a sync will come */
} RequestEnd;

extern RequestEnd syncstate_request(const SyncKey *key);

#endif
