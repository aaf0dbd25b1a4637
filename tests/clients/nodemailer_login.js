// Sends a message as a user: nodemailer_login.js PORT starttls|implicit MECHANISM USER SECRET.
'use strict';
const nodemailer = require('nodemailer');
const [port, how, mechanism, user, secret] = process.argv.slice(2);
const auth = mechanism === 'XOAUTH2'
  ? { type: 'OAuth2', user, accessToken: secret }
  : { user, pass: secret };
const transport = nodemailer.createTransport({
  host: '127.0.0.1', port: Number(port), secure: how === 'implicit', requireTLS: true,
  name: 'client.test', authMethod: mechanism, auth, connectionTimeout: 30000,
});
transport.sendMail({ from: user, to: 'user@box.test', subject: 'hello', text: 'hello' }).catch((error) => {
  console.error(error);
  process.exit(1);
});
